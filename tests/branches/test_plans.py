"""Plans that remove units: their file, what they fit, what they count, and the way to disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune import costs
from fxprune.errors import PlanError, SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters, fingerprint
from fxprune.plan import Plan, decode, encode
from fxprune.select.budget import Budget
from fxprune.select.select import select
from tests.hf import tiny
from tests.select.checks import assert_met, random_scores

LAST = "model.layers.2"
REMOVED = ("model.layers.0:mlp", f"{LAST}:block")


@pytest.fixture(scope="module")
def whole() -> fxprune.Traced:
    return fxprune.trace(tiny.llama(num_hidden_layers=3))


@pytest.fixture(scope="module")
def graph(whole: fxprune.Traced) -> DependencyGraph:
    """Of the model without a branch and a block."""
    return fxprune.discover(fxprune.bypass(whole, REMOVED))


@pytest.fixture(scope="module")
def plan(graph: DependencyGraph) -> Plan:
    return Plan.of(graph, {"model.layers.1.mlp:units": range(0, 40, 3)})


# The file


def test_comes_back_from_its_file(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert json.loads(path.read_text())["removed"] == list(REMOVED)


def test_a_file_from_before_loads(plan: Plan) -> None:
    data = encode(replace(plan, removed=()))
    assert "removed" not in data
    assert Plan(**decode(json.dumps(data))).removed == ()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([REMOVED[0]] * 2, "removes a branch or block twice"),
        ([REMOVED[0], 3], "'removed' must hold text only"),
        ([None], "'removed' must hold text only"),
        (REMOVED[0], "'removed' is of the wrong type"),
        ({REMOVED[0]: 1}, "'removed' is of the wrong type"),
        (None, "'removed' is of the wrong type"),
    ],
)
def test_a_damaged_file(removed: Any, message: str, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**encode(plan), "removed": removed}))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)


# What it fits


def test_knows_what_its_graph_lacks(plan: Plan, graph: DependencyGraph) -> None:
    assert plan.removed == REMOVED
    assert plan.fingerprint == fingerprint(graph)
    plan.check(graph)


def test_is_of_the_architecture_of_the_whole_model(plan: Plan, whole: fxprune.Traced) -> None:
    again = Plan.of(fxprune.discover(whole), {})
    assert plan.fingerprint == again.fingerprint
    assert plan.parameters_before == again.parameters_before == again.parameters_after


@pytest.mark.parametrize(
    "removed", [(), REMOVED[:1], (REMOVED[0], "model.layers.1:mlp", REMOVED[1])]
)
def test_a_graph_that_lacks_something_else(
    removed: tuple[str, ...], plan: Plan, whole: fxprune.Traced
) -> None:
    other = fxprune.discover(fxprune.bypass(whole, removed))
    with pytest.raises(
        PlanError, match=r"take discover\(bypass\(traced, plan.removed\)\)"
    ) as caught:
        plan.check(other)
    assert f"removes {', '.join(REMOVED)} and" in str(caught.value)
    assert f"lacks {', '.join(removed) or 'nothing'}:" in str(caught.value)


def test_the_groups_of_removed_units_are_unknown(graph: DependencyGraph) -> None:
    with pytest.raises(PlanError, match=r"unknown group 'model\.layers\.2\.mlp:units'"):
        Plan.of(graph, {f"{LAST}.mlp:units": [0]})


@pytest.mark.parametrize("start", ["whole", "shorter", "as short"])
def test_applies_to_the_whole_model_and_to_a_shorter_one(
    start: str, plan: Plan, whole: fxprune.Traced
) -> None:
    removed = {"whole": (), "shorter": REMOVED[:1], "as short": REMOVED}[start]
    model = fxprune.bypass(whole, removed)
    small = fxprune.rewrite(model, plan)
    fxprune.verify(model, small, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


def test_of_a_model_without_that_unit(plan: Plan) -> None:
    other = fxprune.trace(tiny.llama(num_hidden_layers=2))
    with pytest.raises(fxprune.errors.DepthError, match=r"no residual .* 'model\.layers\.2:block'"):
        fxprune.rewrite(other, plan)


def test_the_oracle_sees_a_unit_that_stayed(plan: Plan, whole: fxprune.Traced) -> None:
    """And one that went unasked."""
    for removed in (REMOVED[:1], ("model.layers.1:attention", *REMOVED)):
        graph = fxprune.discover(fxprune.bypass(whole, removed))
        wrong = fxprune.rewrite(whole, Plan.of(graph, plan.kept))
        with pytest.raises(fxprune.errors.OracleError, match="must not be used"):
            fxprune.verify(whole, wrong, plan)


def test_the_oracle_sees_a_wrong_bypass() -> None:
    """Even where the smaller model is made of it."""
    whole = fxprune.trace(tiny.llama())
    short = fxprune.bypass(whole, ["model.layers.0:mlp"])
    block = fxprune.find_branches(short)["model.layers.1:block"]
    block.exit.target = torch.ops.aten.sub.Tensor
    short.graph_module.recompile()
    plan = Plan.of(fxprune.discover(short), {})
    with pytest.raises(fxprune.errors.OracleError, match="must not be used"):
        fxprune.verify(whole, fxprune.rewrite(whole, plan), plan)


# What it counts


def kv_cache(graph: DependencyGraph) -> Callable[[Any], int]:
    """Keys and values of one position: heads of size 6."""
    heads = [group.dim for group in graph.groups if group.kind == "attention"]
    return lambda counts: sum(2 * 6 * counts.get(dim, dim.size) for dim in heads)


def test_a_ratio_is_of_the_whole_model(whole: fxprune.Traced) -> None:
    before = sum(p.numel() for p in whole.module.parameters())
    graph = fxprune.discover(fxprune.bypass(whole, [f"{LAST}:block"]))
    block = sum(p.numel() for p in whole.module.get_submodule(LAST).parameters())
    assert count_parameters(graph) == before - block
    plan = select(graph, random_scores(graph), 0.4)
    assert plan.parameters_before == before
    assert plan.parameters_after <= 0.6 * before
    assert plan.removed == (f"{LAST}:block",)
    assert_met(graph, plan, [(lambda counts: count_parameters(graph, counts), 0.6 * before)])


def test_a_ratio_that_depth_alone_meets_takes_nothing_more(whole: fxprune.Traced) -> None:
    graph = fxprune.discover(fxprune.bypass(whole, [f"{LAST}:block"]))
    plan = select(graph, random_scores(graph), 0.1)
    assert plan.parameters_after < 0.9 * plan.parameters_before
    assert not plan.kept


@pytest.mark.parametrize(("limit", "stays"), [("params", 0.55), ("macs", 0.55), ("kv_cache", 0.5)])
def test_a_budget_is_of_the_whole_model(limit: str, stays: float, whole: fxprune.Traced) -> None:
    def cost(graph: DependencyGraph) -> Callable[[Any], int]:
        if limit == "kv_cache":
            return kv_cache(graph)
        if limit == "macs":
            return lambda counts: costs.macs(graph, counts, 2, 16)
        return lambda counts: count_parameters(graph, counts)

    graph = fxprune.discover(fxprune.bypass(whole, [f"{LAST}:block"]))
    most = stays * cost(fxprune.discover(whole))({})
    assert most < cost(graph)({}) < 2 * most
    budget = Budget(**{limit: stays}, shape=(2, 16))  # type: ignore[arg-type]
    plan = select(graph, random_scores(graph), None, budget=budget)
    assert_met(graph, plan, [(cost(graph), most)])
    assert plan.kept


def test_a_budget_of_what_is_gone_altogether(whole: fxprune.Traced) -> None:
    """It was there to begin with, so the limit is met and not refused."""
    branches = fxprune.find_branches(whole).of("attention")
    graph = fxprune.discover(fxprune.bypass(whole, [unit.name for unit in branches]))
    assert not select(graph, random_scores(graph), budget=Budget(kv_cache=0.5)).kept
    with pytest.raises(SelectionError, match="pruning_ratio"):
        select(graph, random_scores(graph), 0.99)


# To disk


def test_a_saved_model_comes_back_bit_equal(
    plan: Plan, whole: fxprune.Traced, tmp_path: Path
) -> None:
    small = fxprune.rewrite(whole, plan)
    folder = fxprune.save(small, tmp_path / "m", plan=plan, traced=whole)
    again = fxprune.load(folder)
    for ids in (torch.arange(24).view(2, 12), torch.arange(35).view(7, 5)):
        assert torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in small.named_parameters()}
