"""Limits that people set on single groups hold under every ranking, budget and search."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.select.budget import Budget
from fxprune.select.pool import pool_of
from fxprune.select.select import select
from tests.llama import tiny_llama
from tests.select.checks import assert_lowest_go, assert_met, random_scores
from tests.toys import ToyLM, toy_graph

GRAPH: Any = toy_graph(ToyLM(layers=4, kv=4, repeat=2, units=21, channels=6))
BEFORE = count_parameters(GRAPH)
RANKINGS = ["local", "global", "uniform"]


@functools.cache
def llama(layers: int = 4) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama(num_hidden_layers=layers)))


def lost(graph: Any, plan: fxprune.Plan) -> dict[str, int]:
    return {name: graph[name].size - len(kept) for name, kept in plan.kept.items()}


@settings(max_examples=60)
@given(
    st.floats(0, 0.5),
    st.sampled_from(RANKINGS),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_no_group_loses_more_than_it_may(
    ratio: float, ranking: Any, most: float, least: int, seed: int
) -> None:
    """And the budget is met all the same, no unit more than that going."""
    scores = random_scores(GRAPH, seed)
    limits: Any = {"max_ratio": most, "min_kept": {"attention": least}}
    try:
        plan = select(GRAPH, scores, ratio, ranking=ranking, **limits)
    except SelectionError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        assert "held by" in str(error)  # noqa: PT017
        return
    for name, count in lost(GRAPH, plan).items():
        assert count <= most * GRAPH[name].size + 1e-9
        assert GRAPH[name].kind != "attention" or GRAPH[name].size - count >= least
    assert_lowest_go(GRAPH, plan, scores)
    if ranking != "uniform":
        met: Any = [(lambda counts: count_parameters(GRAPH, counts), int((1 - ratio) * BEFORE))]
        assert_met(GRAPH, plan, met)


@pytest.mark.parametrize("ranking", ["local", "global", "uniform"])
@pytest.mark.parametrize("budget", [{"params": 0.85}, {"macs": 0.8}, {"kv_cache": 0.75}])
def test_under_every_budget(budget: dict[str, Any], ranking: Any) -> None:
    graph, scores = llama(), random_scores(llama())
    # One group would give nearly all of it.
    scores["model.layers.2.mlp:units"] -= 10
    free = select(graph, scores, budget=Budget(**budget), ranking=ranking, normalise="none")
    plan = select(
        graph, scores, budget=Budget(**budget), ranking=ranking, normalise="none", max_ratio=0.5
    )
    assert plan.kept
    assert all(n <= graph[name].size / 2 for name, n in lost(graph, plan).items())
    if ranking == "global" and "kv_cache" not in budget:
        assert lost(graph, free)["model.layers.2.mlp:units"] > 20
        assert plan.limits["model.layers.2.mlp:units"] == "max_ratio=0.5"


def test_shares_of_units_keep_to_it() -> None:
    plan = select(
        GRAPH, random_scores(GRAPH), budget=Budget(units=0.5), max_ratio={"*.1.mlp:*": 0.1}
    )
    found = {name: n for name, n in lost(GRAPH, plan).items() if "mlp" in name}
    assert found == {f"layers.{i}.mlp:units": 2 if i == 1 else 11 for i in range(4)}
    assert plan.limits == {"layers.1.mlp:units": "max_ratio=0.1"}
    with pytest.raises(SelectionError, match=r"units=0.5 of every group go, and max_ratio=0.25"):
        select(GRAPH, random_scores(GRAPH), budget=Budget(units=0.5), max_ratio=0.25)


def test_by_kind_and_pattern_the_last_one_counts() -> None:
    limits: Any = {"max_ratio": {"mlp": "10%", "layers.2.*": 0.0, "layers.3.mlp:units": 1}}
    pool = pool_of(GRAPH, random_scores(GRAPH), ("mlp", "attention"), **limits)
    assert pool.most() == {
        **{f"layers.{i}.attention:kv": 0 if i == 2 else 3 for i in range(4)},
        **{f"layers.{i}.mlp:units": n for i, n in enumerate((2, 2, 0, 20))},
    }
    assert pool.whole == {
        "layers.0.mlp:units", "layers.1.mlp:units", "layers.2.mlp:units", "layers.2.attention:kv",
    }  # fmt: skip


def test_a_budget_out_of_reach_names_what_holds_it() -> None:
    limits: Any = {"max_ratio": 0.2, "min_kept": {"attention": 4}, "keep_first": 1}
    with pytest.raises(SelectionError) as caught:
        select(GRAPH, random_scores(GRAPH), 0.5, **limits)
    message = str(caught.value)
    assert message.startswith("pruning_ratio=0.5 cannot be met: at least ")
    held = "3 groups are held by min_kept=4, 3 by max_ratio=0.2, 2 by keep_first=1; choose more"
    assert held in message
    with pytest.raises(SelectionError, match=r"cannot be met.*\); choose more kinds"):
        select(GRAPH, random_scores(GRAPH), 0.99)
    with pytest.raises(
        SelectionError, match=r"kv_cache=0.3 cannot .*4 groups are held by max_ratio=0.5"
    ):
        select(
            llama(),
            random_scores(llama()),
            None,
            "attention",
            budget=Budget(kv_cache=0.3),
            max_ratio=0.5,
        )


def test_an_override_above_it_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"the override of layers.0.mlp:units takes 0.6 of"):
        select(GRAPH, random_scores(GRAPH), 0.2, overrides={"mlp": 0.6}, max_ratio=0.5)
    plan = select(GRAPH, random_scores(GRAPH), 0.2, overrides={"mlp": 0.3}, max_ratio=0.3)
    assert {n for name, n in lost(GRAPH, plan).items() if "mlp" in name} == {6}


def test_an_override_by_kind_of_what_is_not_there() -> None:
    with pytest.raises(SelectionError, match="'expert' is of groups that are not to be pruned"):
        select(GRAPH, random_scores(GRAPH), 0.2, overrides={"expert": 0.3})
    assert select(GRAPH, random_scores(GRAPH), 0.2, overrides={"expert": 0}).kept


def test_alike_groups_are_held_by_one_another() -> None:
    plan = select(
        GRAPH, random_scores(GRAPH), 0.1, "mlp", ranking="uniform", max_ratio={"layers.1.*": 0.3}
    )
    assert {n for name, n in lost(GRAPH, plan).items() if "mlp" in name} == {6}
    assert plan.limits["layers.1.mlp:units"] == "max_ratio=0.3"
    assert plan.limits["layers.0.mlp:units"] == "no more than others of its kind"


def test_an_earlier_plan_that_took_more_stays() -> None:
    early = select(GRAPH, random_scores(GRAPH), 0.3, ("mlp",))
    later = select(GRAPH, random_scores(GRAPH, 1), 0.35, start=early, max_ratio=0.5)
    for name, kept in early.kept.items():
        more = GRAPH[name].size - len(kept) < GRAPH[name].size // 2
        assert more or later.kept[name] == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ratio": {"layer.1.*": 0.5}}, r"max_ratio 'layer\.1\.\*' matches no group; close"),
        ({"min_kept": {"heads": 2}}, "min_kept 'heads' matches no group"),
        ({"max_ratio": 1.5}, r"max_ratio=1.5 is outside \[0, 1\)"),
        ({"max_ratio": {"mlp": -1}}, "max_ratio=-1 is outside"),
        ({"min_kept": {"mlp": 0}}, "min_kept=0: a whole number, at least 1"),
        ({"only": "layer"}, "only='layer': the model has no such module; close: layers"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    graph = llama() if "only" in options else GRAPH
    message = message.replace("close: layers", "close")
    with pytest.raises(SelectionError, match=message):
        select(graph, random_scores(graph), 0.2, **options)


def test_costs_that_are_measured() -> None:
    """No branch goes whole that holds a group of which something has to stay."""
    torch.manual_seed(0)
    data = torch.randint(3, 90, (32, 13))
    model = tiny_llama(num_hidden_layers=3)
    with torch.no_grad():  # branches that do next to nothing cost nothing
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1e-3)
    options: Any = {"calibration": data, "search": "measured", "branches": ("mlp",)}
    options |= {"pruning_ratio": 0.3, "compensation": None, "verify": False}
    free = fxprune.prune(model, **options).plan
    assert "model.layers.0:mlp" in free.removed
    for more in (
        {"layers": "1-2"},
        {"keep_first": 1},
        {"max_ratio": {"*.0.*": 0.5}},
        {"only": ("model.layers.1", "model.layers.2")},
    ):
        plan = fxprune.prune(model, **options, **more).plan
        assert "model.layers.0:mlp" not in plan.removed, more
        assert plan.removed, more
        assert plan.parameters_after <= 0.7 * plan.parameters_before
        if "max_ratio" not in more:
            assert not [name for name in plan.kept if ".0." in name]
