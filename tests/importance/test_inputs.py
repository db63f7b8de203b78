"""Criteria on the consumers' inputs against plain loops, grouped queries and all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import fxprune
from fxprune.errors import CalibrationError, CriterionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance import FLAP, ActivationNorm, Criterion, PeakToPeak, WandaSP, estimate
from tests.importance import hand
from tests.llama import tiny_llama

KINDS = ("mlp", "attention")
IDS = torch.randint(0, 90, (5, 9), generator=torch.Generator().manual_seed(1))
CRITERIA = [
    WandaSP(),
    FLAP(),
    FLAP("IFV"),
    FLAP("WIFN"),
    FLAP(squared=("attention",)),
    ActivationNorm(),
    ActivationNorm(1),
    PeakToPeak(),
    PeakToPeak(False),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(initializer_range=0.4)


@pytest.fixture(scope="module")
def graph(model: LlamaForCausalLM) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(model, kwargs={"input_ids": IDS[:2]}))


def slow_units(criterion: Criterion, w: np.ndarray, xs: list[np.ndarray], kind: str) -> Any:
    """Channel scores of one consumer with weight w (out, in) and inputs (L, in) per sequence."""
    tokens = [token for x in xs for token in x]
    outputs, channels = w.shape
    result = []
    for j in range(channels):
        values = [token[j] for token in tokens]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        energy = math.fsum(math.fsum(v * v for v in x[:, j]) for x in xs) / len(xs)
        column = [w[i, j] for i in range(outputs)]
        wanda = math.fsum(abs(v) * math.sqrt(energy) for v in column) / outputs
        if isinstance(criterion, WandaSP):
            result.append(wanda)
        elif isinstance(criterion, FLAP):
            wifv = variance * math.fsum(v * v for v in column)
            result.append({"WIFV": wifv, "IFV": variance, "WIFN": wanda}[criterion.metric])
        elif isinstance(criterion, ActivationNorm) and criterion.p == 1:
            result.append(math.fsum(abs(v) for v in values) / len(values))
        else:
            result.append(math.fsum(v * v for v in values))
    if isinstance(criterion, FLAP):
        if kind in criterion.squared:
            result = [v * v for v in result]
        mean = math.fsum(result) / channels
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in result) / (channels - 1))
        result = [(v - mean) / std for v in result]
    return result


def slow_ranges(w: dict[str, np.ndarray], sites: hand.Members) -> list[float]:
    """Martra: (range_i / largest range), summed over the members."""
    total = [0.0] * len(sites[0][2])
    for tensor, axis, units in sites:
        rows = np.moveaxis(w[tensor], axis, 0)
        ranges = []
        for channels in units:
            values = [float(v) for channel in channels for v in rows[channel]]
            ranges.append(max(values) + abs(min(values)))
        total = [t + r / max(ranges) for t, r in zip(total, ranges, strict=True)]
    return total


def slow(model: LlamaForCausalLM, criterion: Criterion) -> dict[str, np.ndarray]:
    w = hand.weights(model)
    result = {}
    for name, sites in hand.groups():
        tensor, _, units = sites[-1]  # o_proj or down_proj
        kind = "mlp" if name.endswith("mlp:units") else "attention"
        xs = hand.inputs(model, IDS, tensor.removesuffix(".weight"))
        channels = slow_units(criterion, w[tensor], xs, kind)
        scores = []
        for unit in units:
            values = [channels[channel] for channel in unit]
            total = math.fsum(values)
            if isinstance(criterion, WandaSP):
                scores.append(total)
            elif isinstance(criterion, FLAP) or getattr(criterion, "p", 0) == 1:
                scores.append(total / len(values))
            else:
                scores.append(math.sqrt(total))
        if isinstance(criterion, PeakToPeak):
            ranges = slow_ranges(w, sites)
            if not criterion.activations:
                scores = [1.0] * len(scores)
            scores = [r * norm for r, norm in zip(ranges, scores, strict=True)]
        result[name] = np.array(scores)
    return result


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_by_hand(
    model: LlamaForCausalLM, graph: DependencyGraph, criterion: Criterion, batch_size: int | None
) -> None:
    scores = estimate(model, graph, criterion, IDS, kinds=KINDS, batch_size=batch_size)
    expected = slow(model, criterion)
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=2e-4, atol=2e-5)


def test_the_metrics_differ(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    found = estimate(model, graph, CRITERIA, IDS, kinds=KINDS)
    shares = []
    for scores in found:
        values = scores["model.layers.0.self_attn:heads"]
        shares.append(values / values.abs().sum())
    for i, a in enumerate(shares):
        assert all((a - b).abs().max() > 1e-3 for b in shares[:i])


def test_flap_is_standardised(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    scores = estimate(model, graph, FLAP(), IDS, kinds=["mlp"])["model.layers.0.mlp:units"]
    assert abs(scores.mean()) < 1e-5
    assert abs(scores.std() - 1) < 1e-5


def test_query_heads_and_value_channels(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    """Units inside o_proj's input by other axes of its layout (kv, query, head_dim)."""
    (norm,) = [estimate(model, graph, ActivationNorm(), IDS, kinds=["query"])]
    xs = np.concatenate(hand.inputs(model, IDS, "model.layers.0.self_attn.o_proj"))
    squares = (xs**2).sum(0).reshape(3, 2, 6)
    np.testing.assert_allclose(
        norm["model.layers.0.self_attn:queries"], np.sqrt(squares.sum((0, 2))), rtol=1e-4
    )
    group = graph["model.layers.0.self_attn:v_dim"]
    values = estimate(model, graph, ActivationNorm(), IDS, groups=[group])[group.name]
    np.testing.assert_allclose(values, np.sqrt(squares.sum((0, 1))), rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_several_consumers_and_a_tied_head(tied: bool) -> None:
    """The residual stream is read by q, k, v, gate, up and the head, which may own no weight."""
    model = tiny_llama(tie_word_embeddings=tied, initializer_range=0.4)
    graph = fxprune.discover(fxprune.trace(model, kwargs={"input_ids": IDS[:2]}))
    (group,) = (group for group in graph.groups if group.kind == "channel")
    names = [f"model.layers.{i}.self_attn.{m}_proj" for i in range(2) for m in "qkv"]
    names += [f"model.layers.{i}.mlp.{m}_proj" for i in range(2) for m in ("gate", "up")]
    table = []
    for name in [*names, "lm_head"]:
        xs = hand.inputs(model, IDS, name)
        weight = model.get_submodule(name).weight.detach().double().numpy()
        table.append(slow_units(WandaSP(), weight, xs, "channel"))
    stack = np.array(table)
    for how, expected in (("sum", stack.sum(0)), ("max", stack.max(0)), ("mean", stack.mean(0))):
        criterion = WandaSP(aggregate=how)  # type: ignore[arg-type]
        scores = estimate(model, graph, criterion, IDS, kinds=["channel"])[group.name]
        np.testing.assert_allclose(scores, expected, rtol=2e-4)
    squares = sum(
        (np.concatenate(hand.inputs(model, IDS, n)) ** 2).sum(0) for n in [*names, "lm_head"]
    )
    both = [PeakToPeak(), PeakToPeak(False)]
    moving, still = estimate(model, graph, both, IDS, kinds=["channel"])
    np.testing.assert_allclose(moving[group.name] / still[group.name], np.sqrt(squares), rtol=2e-4)


def test_padding_does_not_count(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    mask = torch.ones_like(IDS)
    mask[:, 6:] = 0
    padded = {"input_ids": IDS, "attention_mask": mask}
    for criterion in CRITERIA:
        found = estimate(model, graph, criterion, padded, kinds=KINDS)
        expected = estimate(model, graph, criterion, IDS[:, :6], kinds=KINDS)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_no_labels_are_needed(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    ignored = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    found = estimate(model, graph, WandaSP(), ignored, kinds=KINDS)
    expected = estimate(model, graph, WandaSP(), IDS, kinds=KINDS)
    torch.testing.assert_close(dict(found), dict(expected))


def test_the_head_is_left_out_where_nothing_reads_it(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    seen: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_hook(lambda m, a, y: seen.append(tuple(y.shape)))
    estimate(model, graph, WandaSP(), IDS, kinds=KINDS)
    estimate(model, graph, WandaSP(), IDS, kinds=["channel"])
    handle.remove()
    assert seen == [(5, 1, 90), (5, 9, 90)]


def test_half_precision(graph: DependencyGraph, model: LlamaForCausalLM) -> None:
    half = tiny_llama(initializer_range=0.4).bfloat16()
    for criterion in CRITERIA:
        expected = estimate(model, graph, criterion, IDS, kinds=KINDS)
        for name, scores in estimate(half, graph, criterion, IDS, kinds=KINDS).items():
            assert scores.dtype == torch.float32
            torch.testing.assert_close(scores, expected[name], rtol=0.2, atol=0.2)


def test_inside_inference_mode(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    expected = estimate(model, graph, CRITERIA, IDS, kinds=KINDS)
    with torch.inference_mode():
        found = estimate(model, graph, CRITERIA, IDS, kinds=KINDS)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(dict(a), dict(b))


def test_a_member_alone(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    """The dependency ignored: the consumer's own site can be scored, the others cannot."""
    group = graph["model.layers.0.mlp:units"]
    alone = {
        site.tensor.split(".")[-2]: Group(
            site.tensor, "mlp", 40, (site,), group.dim, False, None, None
        )
        for site in group.sites
    }
    down, up = alone["down_proj"], alone["up_proj"]
    whole = estimate(model, graph, WandaSP(), IDS, groups=[group])[group.name]
    assert torch.equal(estimate(model, graph, WandaSP(), IDS, groups=[down])[down.name], whole)
    with pytest.raises(CriterionError, match=r"cannot score group .*up_proj"):
        estimate(model, graph, WandaSP(), IDS, groups=[up])


# Bad input


def test_groups_without_consumers(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    def never(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> Tensor:
        raise AssertionError("the model must not run")

    name = r"WandaSP\(.*\) cannot score group 'model\.layers:qk_dim' \(head_dim\)"
    with pytest.raises(CriterionError, match=name + ": no product .* Taylor .* can"):
        estimate(model, graph, WandaSP(), IDS, loss_fn=never)
    with pytest.raises(CriterionError, match=r"PeakToPeak\(.*\) cannot score group"):
        estimate(model, graph, PeakToPeak(), IDS, kinds=["head_dim"], loss_fn=never)
    static = estimate(model, graph, PeakToPeak(False), kinds=["head_dim"])
    assert "model.layers:qk_dim" in static


@pytest.mark.parametrize("criterion", [WandaSP(), FLAP(), ActivationNorm(), PeakToPeak()], ids=repr)
def test_data_is_needed(
    model: LlamaForCausalLM, graph: DependencyGraph, criterion: Criterion
) -> None:
    with pytest.raises(CriterionError, match=r"\(.*\) needs calibration data"):
        estimate(model, graph, criterion, kinds=KINDS)


def test_inputs_that_are_not_finite(graph: DependencyGraph) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 2] = torch.inf
    with pytest.raises(CriterionError, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' or its"):
        estimate(model, graph, WandaSP(), IDS, kinds=["mlp"])


def test_one_token_has_no_fluctuation() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    graph = fxprune.discover(fxprune.trace(model, (torch.randn(2, 4),)))
    assert estimate(model, graph, WandaSP(), torch.randn(1, 4))
    with pytest.raises(CalibrationError, match="at least 2 calibration tokens"):
        estimate(model, graph, FLAP(), torch.randn(1, 4))


@pytest.mark.parametrize(
    "make", [lambda: FLAP("WIFX"), lambda: ActivationNorm(3), lambda: WandaSP(aggregate="median")]
)
def test_unknown_options(make: Any) -> None:
    with pytest.raises(CriterionError, match=r"WIFX|p must be|median"):
        make()
