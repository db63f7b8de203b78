"""OBS against removal one by one with every inverse computed anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fxprune
from fxprune import OBS
from fxprune.errors import CriterionError
from fxprune.importance.surgery import Block, damped_inverse, removal_costs
from tests.llama import tiny_llama
from tests.zoo import BY_NAME

IDS = torch.randint(0, 90, (12, 9), generator=torch.Generator().manual_seed(3))
DAMPING = 0.05


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(initializer_range=0.3)


@pytest.fixture(scope="module")
def graph(model: Any) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model, (), {"input_ids": IDS[:2]}))


def moments(model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Mean outer products of inputs and of gradients of the summed loss, sample by sample."""
    module = model.get_submodule(name)
    seen: dict[str, Tensor] = {}

    def hook(_: Any, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        seen["x"], seen["y"] = args[0], output

    handle = module.register_forward_hook(hook)
    a, g = torch.zeros(1), torch.zeros(1)
    for row in IDS:
        logits = model(input_ids=row[None]).logits[0, :-1]
        functional.cross_entropy(logits, row[1:], reduction="sum").backward()
        x, slope = seen["x"][0].double(), seen["y"].grad[0].double()
        a, g = a + x.T @ x, g + slope.T @ slope
        model.zero_grad()
    handle.remove()
    return (a / IDS.numel()).detach(), (g / IDS.numel()).detach()


def one_by_one(a: Tensor, g: Tensor, weight: Tensor, units: list[list[int]]) -> Tensor:
    """Least squares by definition: refit what stays, measure the error of the output."""
    damped = a + DAMPING * torch.diag(a.diagonal())
    weight = weight.detach().double()
    left, costs, total, highest = list(range(len(units))), torch.zeros(len(units)), 0.0, 0.0
    while left:
        errors = []
        for unit in left:
            stay = [c for u in left if u != unit for c in units[u]]
            refit = torch.zeros_like(weight)
            if stay:
                normal = damped[stay][:, stay]
                refit[:, stay] = torch.linalg.solve(normal, (weight @ damped)[:, stay].T).T
            lost = weight - refit
            errors.append(0.5 * float(torch.trace(g @ lost @ damped @ lost.T)))
        place = min(range(len(left)), key=errors.__getitem__)
        highest = max(highest, errors[place] - total)
        costs[left[place]] = highest
        total = errors[place]
        left.pop(place)
    return costs


CASES = {
    "model.layers.0.mlp:units": ("model.layers.0.mlp.down_proj", [[i] for i in range(40)]),
    "model.layers.1.self_attn:heads": (
        "model.layers.1.self_attn.o_proj",
        [list(range(12 * i, 12 * i + 12)) for i in range(3)],
    ),
}


@pytest.mark.parametrize("group", CASES)
def test_against_refits_from_scratch(model: Any, graph: Any, group: str) -> None:
    name, units = CASES[group]
    scores = fxprune.estimate(model, graph, OBS(DAMPING), IDS, groups=[graph[group]])[group]
    expected = one_by_one(*moments(model, name), model.get_submodule(name).weight, units)
    torch.testing.assert_close(scores, expected, rtol=2e-2, atol=1e-3 * float(expected.max()))
    for count in range(0, len(units), 8):  # near ties may change places
        first, slow = (set(each.argsort()[:count].tolist()) for each in (scores, expected))
        assert len(first - slow) <= 1


def test_micro_batches_and_other_criteria_change_nothing(model: Any, graph: Any) -> None:
    kinds = ("mlp", "attention")
    whole = fxprune.estimate(model, graph, OBS(), IDS, kinds=kinds)
    parts = fxprune.estimate(model, graph, OBS(), IDS, kinds=kinds, batch_size=5)
    beside = fxprune.estimate(model, graph, [fxprune.Taylor(order=2), OBS()], IDS, kinds=kinds)[1]
    for name, scores in whole.items():
        torch.testing.assert_close(parts[name], scores, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(beside[name], scores, rtol=1e-3, atol=1e-9)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_padding_does_not_count(model: Any, graph: Any) -> None:
    padded = torch.cat([IDS, IDS.new_zeros(len(IDS), 4)], 1)
    mask = torch.ones_like(padded)
    mask[:, -4:] = 0
    data = {"input_ids": padded, "attention_mask": mask}
    kinds = ("mlp", "attention")
    alone = fxprune.estimate(model, graph, OBS(), IDS, kinds=kinds)
    beside = fxprune.estimate(model, graph, OBS(), data, kinds=kinds)
    for name, scores in alone.items():
        torch.testing.assert_close(beside[name], scores, rtol=1e-2, atol=1e-8)


def test_order_of_removal_is_in_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 24, generator=generator, dtype=torch.float64)
    weight, g = torch.randn(6, 24, generator=generator), torch.eye(6, dtype=torch.float64)
    columns = torch.arange(24)[:, None]
    scores = removal_costs([Block.of(x.T @ x / 200, g, weight, 0.0)], columns, 24)
    assert len(scores.float().unique()) == 24
    twin = torch.cat([x, x[:, :1]], 1)  # an input that another one repeats costs nothing
    doubled = torch.cat([weight, weight[:, 1:2]], 1)
    twins = [Block.of(twin.T @ twin / 200, g, doubled, 1e-3)]
    costs = removal_costs(twins, torch.arange(25)[:, None], 25)
    assert min(costs[0], costs[24]) == costs.min()
    assert costs.min() < 1e-2 * costs.median()


def test_a_group_it_cannot_score(model: Any, graph: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(model, "forward", None)  # refused before anything runs
    with pytest.raises(CriterionError, match=r"channels' \(channel\): a norm averages them"):
        fxprune.estimate(model, graph, OBS(), IDS, kinds=("channel",))


@pytest.mark.parametrize("name", ["gpt2", "falcon_grouped", "bloom"])
def test_other_products(name: str) -> None:
    """Conv1D, whose weight lies the other way; a transposed one; heads that layers share."""
    built = BY_NAME[name].build()
    args, kwargs = BY_NAME[name].example()
    known = fxprune.discover(fxprune.trace(built, args, kwargs))
    (ids,) = (*args, *kwargs.values()) if len((*args, *kwargs)) == 1 else (kwargs["input_ids"],)
    scores = fxprune.estimate(built, known, OBS(), ids, kinds=("mlp", "attention"))
    for group_name, each in scores.items():
        assert (each > 0).all(), group_name
        assert len(each.unique()) == known[group_name].size


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"damping": float("nan")}, {"rounds": 0}])
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(CriterionError, match="at least"):
        OBS(**options)


@pytest.mark.parametrize("below", [0.0, 1e-4])
def test_the_inverse_of_sums_that_are_a_little_off(below: float) -> None:
    """With eigenvalues below zero, as sums in float32 have, it is that of what is above."""
    draw = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(draw)[0]
    values = torch.tensor([-below, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    inputs = basis * values @ basis.T
    scale = inputs.diagonal().rsqrt()
    scaled = scale[:, None] * inputs * scale
    for damping in (1e-6, 0.05):
        found = damped_inverse(inputs.clone(), damping) / scale[:, None] / scale
        known, vectors = torch.linalg.eigh(scaled)
        expected = vectors / (known.clamp(min=0) + damping) @ vectors.T
        tolerance = 1e-6 if below == 0 or damping == 1e-6 else 0.02
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / damping)
