"""Uniform ranking: equal numbers in all groups of a kind and size, at a budget met to a step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.axes.dims import Dim
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.plan import Plan
from fxprune.select.budget import Budget
from fxprune.select.limits import limits_of
from fxprune.select.select import select
from tests.llama import tiny_llama
from tests.select.checks import assert_lowest_go, legal_above, random_scores
from tests.toys import ToyLM, toy_graph

GRAPH: Any = toy_graph(ToyLM(layers=4, kv=4, repeat=2, units=21, channels=6))
BEFORE = count_parameters(GRAPH)
KINDS = ["mlp", "attention", "query", "channel"]


@functools.cache
def llama() -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama()))


def numbers(graph: Any, plan: Plan, apart: Any = ()) -> dict[tuple[str, int], int]:
    """How many stay by kind and size: one number of each."""
    found: dict[tuple[str, int], set[int]] = {}
    for group in graph.groups:
        if group.name not in apart:
            kept = len(plan.kept.get(group.name, range(group.size)))
            found.setdefault((group.kind, group.size), set()).add(kept)
    assert all(len(each) == 1 for each in found.values()), found
    return {key: each.pop() for key, each in found.items()}


def assert_step_too_many(
    graph: Any, plan: Plan, met: Any, multiple: int = 1, apart: Any = ()
) -> None:
    """One more step in every group of a kind and size breaks the budget."""
    counts = plan.kept_counts(graph)
    assert met(counts)
    for (kind, size), kept in numbers(graph, plan, apart).items():
        if kept == size:
            continue
        assert kept % multiple == 0
        above = legal_above(size, kept, multiple)
        back: Mapping[Dim, int] = {
            g.dim: above
            for g in graph.groups
            if (g.kind, g.size) == (kind, size) and g.name not in apart
        }
        assert not met({**counts, **back}), kind


@settings(max_examples=60)
@given(
    st.floats(0, 0.6),
    st.sets(st.sampled_from(KINDS), min_size=1),
    st.sampled_from([1, 1, 2, 3, 4]),
    st.integers(1, 3),
    st.integers(0, 50),
)
def test_a_ratio_is_met_to_within_one_step(
    ratio: float, kinds: set[str], multiple: int, min_kept: int, seed: int
) -> None:
    scores = random_scores(GRAPH, seed)
    options: Any = {"multiple_of": multiple, "min_kept": min_kept, "ranking": "uniform"}
    try:
        plan = select(GRAPH, scores, ratio, sorted(kinds), **options)
    except SelectionError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        return
    most = (1 - ratio) * BEFORE
    assert_step_too_many(GRAPH, plan, lambda c: count_parameters(GRAPH, c) <= most, multiple)
    assert_lowest_go(GRAPH, plan, scores)
    assert all(len(kept) >= min_kept for kept in plan.kept.values())


@pytest.mark.parametrize(
    "budget",
    [
        Budget(macs=0.7, shape=(1, 16)),
        Budget(kv_cache=0.7),
        Budget(params=0.9, macs=0.7, kv_cache=0.8),
    ],
)
def test_other_budgets(budget: Budget) -> None:
    graph = llama()
    plan = select(graph, random_scores(graph), budget=budget, ranking="uniform")
    limits = limits_of(graph, budget, [g.dim for g in graph.groups])
    assert_step_too_many(graph, plan, lambda counts: all(limit.met(counts) for limit in limits))
    assert plan.bound
    assert plan.kept


def test_a_share_of_units() -> None:
    plan = select(
        GRAPH, random_scores(GRAPH), budget=Budget(units=0.3), ranking="uniform", multiple_of=2
    )
    found = numbers(GRAPH, plan)
    assert (found["mlp", 21], found["attention", 4]) == (14, 4)  # 1 may go, and 3 would stay


def test_scores_decide_between_kinds() -> None:
    scores = {g.name: torch.ones(g.size) for g in GRAPH.groups}
    for name in scores:
        scores[name] *= 100 if "kv" in name else 1
    plan = select(GRAPH, scores, 0.1, ranking="uniform", normalise="none")
    assert {GRAPH[name].kind for name in plan.kept} == {"mlp"}
    scores = {name: 1 / each for name, each in scores.items()}
    plan = select(GRAPH, scores, 0.1, ranking="uniform", normalise="none")
    assert "attention" in {GRAPH[name].kind for name in plan.kept}


def test_what_goes_back_is_a_step_of_all() -> None:
    """Four units of 18 parameters go at least: it takes one of each, not three and nothing."""
    scores = random_scores(GRAPH)
    plan = select(GRAPH, scores, (3 * 18 - 1) / BEFORE, ("mlp",), ranking="uniform")
    assert numbers(GRAPH, plan)["mlp", 21] == 20
    assert plan.bound == "params"


def test_protected_layers_and_overrides_are_apart() -> None:
    overrides = {"layers.2.mlp:units": 0.5, "layers.3.attention:kv": 0}
    plan = select(
        GRAPH, random_scores(GRAPH), 0.2, ranking="uniform", keep_first=1, overrides=overrides
    )
    apart = {name for name in plan.limits if "override" in plan.limits[name]}
    assert apart == {"layers.2.mlp:units", "layers.3.attention:kv"}
    assert len(plan.kept["layers.2.mlp:units"]) == 10
    apart |= {"layers.0.mlp:units", "layers.0.attention:kv"}
    assert not apart & plan.kept.keys() - {"layers.2.mlp:units"}
    most = 0.8 * BEFORE
    assert_step_too_many(GRAPH, plan, lambda c: count_parameters(GRAPH, c) <= most, apart=apart)


@settings(max_examples=30)
@given(st.integers(0, 30), st.sampled_from([1, 2]))
def test_an_uneven_plan_is_evened(seed: int, multiple: int) -> None:
    early = select(GRAPH, random_scores(GRAPH, seed), 0.1)
    scores = random_scores(GRAPH, seed + 1)
    options: Any = {"ranking": "uniform", "multiple_of": multiple, "start": early}
    try:
        plan = select(GRAPH, scores, 0.25, **options)
    except SelectionError as error:
        assert "equally many" in str(error)  # noqa: PT017
        assert multiple == 2  # three of four heads are gone, say
        return
    numbers(GRAPH, plan)
    for name, kept in early.kept.items():
        assert set(plan.kept[name]) <= set(kept)
    assert plan.parameters_after <= 0.75 * BEFORE


def test_what_cannot_be_evened() -> None:
    early = Plan.of(GRAPH, {"layers.0.attention:kv": [0]})
    with pytest.raises(SelectionError, match=r"equally many units: .*0\.attention:kv at least 3"):
        select(GRAPH, random_scores(GRAPH), 0.1, ranking="uniform", start=early, multiple_of=2)


def test_steps_go_on_evenly() -> None:
    config = fxprune.PruneConfig(
        pruning_ratio=0.3, ranking="uniform", steps=3, criterion="magnitude", verify=False
    )
    result = fxprune.prune(tiny_llama(), config=config)
    numbers(result.graph, result.plan)
    assert result.plan.parameters_after <= 0.7 * result.plan.parameters_before
