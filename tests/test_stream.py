"""Propagated scores equal what hooks see once the earlier layers' units are zeroed by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import fxprune
from fxprune.errors import CalibrationError, CriterionError, SelectionError
from fxprune.groups.consumers import consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance import FLAP, ActivationNorm, Magnitude, PeakToPeak, Taylor, WandaSP
from fxprune.plan import Plan
from fxprune.proof.zeroed import zeroed
from fxprune.select.budget import Budget
from fxprune.select.select import select
from fxprune.stream import propagate
from tests.importance import hand
from tests.llama import tiny_llama
from tests.zoo import BY_NAME, disturb

LAYERS = 3
IDS = torch.randint(90, (6, 11), generator=torch.Generator().manual_seed(3))
BUDGET = Budget(units=0.4, rounding="down")
O_PROJ = [hand.query_channels(unit) for unit in range(hand.KV)]
DOWN_PROJ = [[unit] for unit in range(hand.UNITS)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    # Large weights, so that what a layer loses is seen in the next.
    model = tiny_llama(num_hidden_layers=LAYERS)
    disturb(model)
    return model


@pytest.fixture(scope="module")
def graph(model: LlamaForCausalLM) -> DependencyGraph:
    mask = torch.ones_like(IDS[:2])
    inputs = {"input_ids": IDS[:2], "attention_mask": mask}
    return fxprune.discover(fxprune.trace(model, kwargs=inputs))


def names(layer: int) -> list[tuple[str, str, list[list[int]]]]:
    """Of a layer: each group, its consumer, and each unit's channels there."""
    at = f"model.layers.{layer}."
    return [
        (f"{at}self_attn:heads", f"{at}self_attn.o_proj", O_PROJ),
        (f"{at}mlp:units", f"{at}mlp.down_proj", DOWN_PROJ),
    ]


def wanda(model: LlamaForCausalLM, consumer: str, units: list[list[int]]) -> Tensor:
    """``sum over channels j of mean_i |W_ij| * sqrt(mean over samples of ||x_j||^2)``."""
    weight = model.get_parameter(f"{consumer}.weight").detach().double().numpy()
    seen = hand.inputs(model, IDS, consumer)
    norm = np.sqrt(np.mean([(x**2).sum(0) for x in seen], axis=0))
    channel = np.abs(weight).mean(0) * norm
    return torch.tensor([channel[u].sum() for u in units], dtype=torch.float32)


def flap(model: LlamaForCausalLM, consumer: str, units: list[list[int]]) -> Tensor:
    """Standardised ``var_j * sum_i W_ij^2``, the mean over a unit's channels."""
    weight = model.get_parameter(f"{consumer}.weight").detach().double().numpy()
    tokens = np.concatenate(hand.inputs(model, IDS, consumer))
    metric = tokens.var(0, ddof=1) * (weight**2).sum(0)
    metric = (metric - metric.mean()) / metric.std(ddof=1)
    return torch.tensor([metric[u].mean() for u in units], dtype=torch.float32)


def by_hand(
    model: LlamaForCausalLM, score: Any, by: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Scores and kept units: hooks on a copy whose earlier consumers lost columns."""
    model = copy.deepcopy(model)
    scores, kept = {}, {}
    for layer in range(LAYERS):
        stage = names(layer)
        for part in [stage] if by == "layer" else [[each] for each in stage]:
            for group, consumer, units in part:
                scores[group] = score(model, consumer, units)
            for group, consumer, units in part:
                gone = torch.argsort(scores[group], stable=True)[: int(0.4 * len(units))]
                kept[group] = tuple(u for u in range(len(units)) if u not in gone)
                channels = [c for u in gone for c in units[u]]
                model.get_parameter(f"{consumer}.weight").data[:, channels] = 0
    return scores, kept


@pytest.mark.parametrize("by", ["layer", "group"])
@pytest.mark.parametrize(("criterion", "score"), [(WandaSP(), wanda), (FLAP(), flap)])
def test_by_hand(
    model: LlamaForCausalLM, graph: DependencyGraph, criterion: Any, score: Any, by: Any
) -> None:
    expected, kept = by_hand(model, score, by)
    scores, plan = propagate(graph, criterion, IDS, budget=BUDGET, by=by, batch_size=4)
    assert list(scores) == [g.name for g in graph.groups if g.kind in ("mlp", "attention")]
    torch.testing.assert_close(dict(scores), {n: expected[n] for n in scores}, rtol=1e-4, atol=1e-5)
    assert plan.kept == kept
    assert {n: len(k) for n, k in kept.items()} == {
        group: len(units) - len(units) * 2 // 5
        for layer in range(LAYERS)
        for group, _, units in names(layer)
    }


def test_only_later_layers_differ_from_the_dense_scores(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    dense = fxprune.estimate(model, graph, WandaSP(), IDS, kinds=("mlp", "attention"))
    scores, _ = propagate(graph, WandaSP(), IDS, budget=BUDGET)
    one_by_one, _ = propagate(graph, WandaSP(), IDS, budget=BUDGET, by="group")
    for layer in range(LAYERS):
        for group, _, _ in names(layer):
            assert torch.allclose(scores[group], dense[group]) == (layer == 0)
            attention = group == "model.layers.0.self_attn:heads"
            assert torch.allclose(one_by_one[group], dense[group]) == attention


@pytest.mark.parametrize("by", ["layer", "group"])
def test_without_pruning_the_scores_are_the_dense_ones(
    model: LlamaForCausalLM, graph: DependencyGraph, by: Any
) -> None:
    kinds = ("mlp", "attention", "query")
    for criterion in (WandaSP(), FLAP(), ActivationNorm(), PeakToPeak()):
        dense = fxprune.estimate(model, graph, criterion, IDS, kinds=kinds)
        scores, plan = propagate(graph, criterion, IDS, kinds=kinds, budget=Budget(units=0), by=by)
        torch.testing.assert_close(dict(scores), dict(dense))
        assert not plan.kept


def test_groups_of_one_consumer_are_scored_together(graph: DependencyGraph) -> None:
    """KV heads, and the query heads of each, are both read by o_proj."""
    kinds = ("attention", "query")
    budget = Budget(units=0.5)
    scores, plan = propagate(graph, WandaSP(), IDS, kinds=kinds, budget=budget, by="group")
    for kind in kinds:
        alone, _ = propagate(graph, WandaSP(), IDS, kinds=kind, budget=budget)
        (first, *later) = [g.name for g in graph.groups if g.kind == kind]
        torch.testing.assert_close(scores[first], alone[first])
        assert not any(torch.allclose(scores[name], alone[name]) for name in later)
    assert len(plan.kept) == 2 * LAYERS


def steps(
    graph: DependencyGraph, criterion: Any, data: Any, plan: Plan, chosen: list[str]
) -> dict[str, Tensor]:
    """Each layer's scores by ``estimate`` with the units of earlier ones zeroed in the weights."""
    found: dict[str, Tensor] = {}
    for name in chosen:
        layer = graph[name].layer
        before = chosen[: chosen.index(name)]
        kept = {n: plan.kept[n] for n in before if layer is None or graph[n].layer != layer}
        with zeroed(graph, Plan.of(graph, kept)):
            group = graph[name]
            found.update(
                fxprune.estimate(graph.traced.module, graph, criterion, data, groups=[group])
            )
    return found


@pytest.mark.parametrize("name", ["gpt2", "falcon_grouped", "phi3", "resnet", "perceptron"])
def test_other_architectures(name: str) -> None:
    """Conv1D, sums in place, fused projections, convolutions."""
    entry = BY_NAME[name]
    args, kwargs = entry.example()
    graph = fxprune.discover(fxprune.trace(entry.build(entry.backends[-1]), args, kwargs))
    data = kwargs or args[0]
    single = [g.name for g in graph.groups if not g.normalised and len(consumers(graph, g)) == 1]
    chosen = [
        n for n in single if graph[n].kind in ("mlp", "attention", "channel") and graph[n].size > 2
    ]
    assert chosen
    budget = Budget(units=0.5, rounding="down")
    scores, plan = propagate(graph, ActivationNorm(), data, groups=chosen, budget=budget)
    expected = steps(graph, ActivationNorm(), data, plan, chosen)
    torch.testing.assert_close(dict(scores), expected, rtol=1e-4, atol=1e-4)
    assert set(plan.kept) == set(chosen)


def test_padding_does_not_count(graph: DependencyGraph) -> None:
    mask = torch.ones_like(IDS)
    mask[1, 7:] = mask[4, 5:] = 0
    padded = {"input_ids": IDS, "attention_mask": mask}
    cropped = [row[keep.bool()][None] for row, keep in zip(IDS, mask, strict=True)]
    for criterion in (WandaSP(), FLAP()):
        scores, plan = propagate(graph, criterion, padded, budget=BUDGET, batch_size=4)
        expected, same = propagate(graph, criterion, cropped, budget=BUDGET)
        torch.testing.assert_close(dict(scores), dict(expected), rtol=1e-4, atol=1e-5)
        assert plan.kept == same.kept
        full, _ = propagate(graph, criterion, IDS, budget=BUDGET)
        assert not torch.allclose(
            scores["model.layers.0.mlp:units"], full["model.layers.0.mlp:units"]
        )


def test_the_model_is_left_as_found(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    propagate(graph, WandaSP(), IDS, budget=BUDGET)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_plan_is_what_select_makes_of_the_scores(graph: DependencyGraph) -> None:
    options: dict[str, Any] = {"gain_bias": True, "overrides": {"*.2.mlp*": 0}, "keep_first": 1}
    scores, plan = propagate(graph, FLAP(), IDS, budget=BUDGET, **options)
    assert plan == select(graph, scores, budget=BUDGET, **options)
    assert plan.criterion == scores.criterion == f"{FLAP()!r}, propagated"
    assert plan.biases == tuple(
        sorted(
            f"{n.removesuffix(':units').removesuffix(':heads')}"
            + (".o_proj.bias" if "attn" in n else ".down_proj.bias")
            for n in plan.kept
        )
    )
    assert not any(".0." in name for name in scores)
    assert "model.layers.2.mlp:units" in scores
    assert "model.layers.2.mlp:units" not in plan.kept
    other = select(graph, scores, 0.1, keep_first=1)
    assert other.parameters_after <= 0.9 * other.parameters_before


def test_a_budget_of_parameters(graph: DependencyGraph) -> None:
    scores, plan = propagate(graph, WandaSP(), IDS, 0.2)
    again = select(graph, scores, 0.2, ranking="local")
    assert plan.bound == "params"
    assert 0.19 * plan.parameters_before <= plan.parameters_before - plan.parameters_after
    assert plan.parameters_after <= 0.8 * plan.parameters_before
    for name, score in scores.items():
        sizes = [len(p.kept.get(name, score)) for p in (plan, again)]
        assert abs(sizes[0] - sizes[1]) <= 1  # what rounding puts back goes by the scores
        stay = sorted(torch.argsort(score, stable=True)[len(score) - sizes[0] :].tolist())
        assert plan.kept.get(name, tuple(range(len(score)))) == tuple(stay)


def test_a_graph_module_whose_modules_cannot_be_hooked(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    inputs = {"input_ids": IDS[:2], "attention_mask": torch.ones_like(IDS[:2])}
    small = fxprune.rewrite(graph.traced, Plan.of(graph, {}))
    again = fxprune.discover(fxprune.trace(small, kwargs=inputs))
    scores, plan = propagate(graph, WandaSP(), IDS, budget=BUDGET)
    data = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    same, plan_of_graph = propagate(again, WandaSP(), data, budget=BUDGET)
    torch.testing.assert_close(dict(same), dict(scores))
    assert plan_of_graph.kept == plan.kept


class Layer(nn.Module):
    """Two branches; the stream is alive while the second runs, and the sum may be in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up1, self.down1 = nn.Linear(5, 7), nn.Linear(7, 5)
        self.up2, self.down2 = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, in_place: bool) -> Tensor:
        x = x + self.down1(self.up1(x).relu())
        y = self.down2(self.up2(x).relu())
        return x.add_(y) if in_place else x + y


class Stack(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.in_place)
        return x


def test_what_one_run_changes_in_place_the_other_does_not_see() -> None:
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for in_place in (True, False):
        graph = fxprune.discover(fxprune.trace(Stack(in_place).eval(), (x,)))
        targets = [str(node.target) for node in graph.traced.graph_module.graph.nodes]
        assert ("aten.add_.Tensor" in targets) == in_place
        found.append(propagate(graph, WandaSP(), x, kinds="mlp", budget=BUDGET))
    (scores, plan), (expected, same) = found
    assert len(expected) == 6
    torch.testing.assert_close(dict(scores), dict(expected))
    assert plan.kept == same.kept


class Twice(nn.Module):
    """Units that a product with a weight reads, and a product with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.up(x).relu()
        return self.down(h), h @ h.transpose(-1, -2)


def test_units_read_elsewhere_too() -> None:
    x = torch.randn(2, 4, 5)
    graph = fxprune.discover(fxprune.trace(Twice(), (x,)))
    (name,) = [g.name for g in graph.groups if g.size == 7]
    with pytest.raises(CriterionError, match=r"up:.*2 ops read its units \(linear_1, matmul"):
        propagate(graph, WandaSP(), x, groups=[name], budget=BUDGET)


@pytest.mark.parametrize("kind", ["channel", "head_dim"])
def test_groups_that_cannot_be_propagated(graph: DependencyGraph, kind: str) -> None:
    with pytest.raises(CriterionError, match=rf"\({kind}\).*leave such groups out with kinds="):
        propagate(graph, WandaSP(), IDS, kinds=(kind,), budget=BUDGET)


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(), PeakToPeak(activations=False)])
def test_criteria_that_cannot_be_propagated(graph: DependencyGraph, criterion: Any) -> None:
    with pytest.raises(CriterionError, match="use estimate and select"):
        propagate(graph, criterion, IDS, budget=BUDGET)


def test_options_are_refused_before_anything_runs(graph: DependencyGraph) -> None:
    bad = {"input_ids": None}  # would fail as soon as it is looked at
    for options, error, words in (
        ({"budget": BUDGET, "ranking": "global"}, SelectionError, "ranking= cannot be given"),
        ({"budget": BUDGET, "start": None}, SelectionError, "start= cannot be given"),
        ({"budget": BUDGET, "by": "head"}, CriterionError, "choose from layer, group"),
        ({"budget": BUDGET, "keep_first": 9}, SelectionError, "is protected"),
        ({"budget": BUDGET, "overrides": {"nope": 0.5}}, SelectionError, "matches no group"),
        ({}, SelectionError, "either pruning_ratio or budget"),
    ):
        with pytest.raises(error, match=words):
            propagate(graph, WandaSP(), bad, **options)  # type: ignore[arg-type]


def test_bad_data(graph: DependencyGraph) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        propagate(graph, WandaSP(), [], budget=BUDGET)
    hidden = {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}
    with pytest.raises(CriterionError, match="no calibration token"):
        propagate(graph, WandaSP(), hidden, budget=BUDGET)


def test_no_weights() -> None:
    with torch.device("meta"):
        empty = tiny_llama(num_hidden_layers=1)
    ids = IDS[:2].to("meta")
    shapes = fxprune.discover(fxprune.trace(empty, kwargs={"input_ids": ids}))
    with pytest.raises(CriterionError, match="on meta: scores need the weights"):
        propagate(shapes, WandaSP(), IDS, budget=BUDGET)


def test_bad_weights(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight.data
    good = weight[0, 0].item()
    weight[0, 0] = torch.nan
    try:
        with pytest.raises(CriterionError, match=r"layers.1.mlp:units.*not finite"):
            propagate(graph, WandaSP(), IDS, budget=BUDGET)
    finally:
        weight[0, 0] = good
