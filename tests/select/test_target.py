"""What an engine takes binds while units are chosen, and the plan says so."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.errors import SelectionError, ServeError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.plan import Plan
from fxprune.select.budget import Budget
from fxprune.select.depth import Depth
from fxprune.select.select import select
from fxprune.select.target import Target
from tests.llama import tiny_llama
from tests.select.checks import assert_lowest_go, random_scores
from tests.toys import ToyLM, toy_graph

GRAPH: Any = toy_graph(ToyLM(layers=4, kv=6, repeat=2, units=21, channels=6))
BEFORE = count_parameters(GRAPH)


@functools.cache
def llama() -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama()))


KINDS = ("mlp", "attention", "query", "channel")

targets = st.builds(
    Target,
    name=st.just("box"),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1).map(tuple),
    even=st.booleans(),
    multiple_of=st.dictionaries(st.sampled_from(["mlp", "attention"]), st.integers(1, 6)),
    kept=st.dictionaries(
        st.sampled_from([("mlp", 21), ("attention", 6), ("query", 2), ("channel", 6)]),
        st.sets(st.integers(1, 21), max_size=6),
    ),
)


@settings(max_examples=100)
@given(
    targets,
    st.floats(0, 0.5),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([{}, {"layers.1.*": 0}, {"*.mlp:units": 0.4}, {"layers.2.*kv": 0.5}]),
    st.integers(0, 20),
)
def test_every_plan_is_such_as_the_engine_takes(
    target: Target, ratio: float, multiple: int, overrides: Any, seed: int
) -> None:
    scores = random_scores(GRAPH, seed)
    try:
        plan = select(
            GRAPH,
            scores,
            ratio,
            KINDS,
            target=target,
            multiple_of=multiple,
            overrides=overrides,
        )
    except SelectionError as error:
        assert str(error)  # noqa: PT017
        return
    assert target.reasons(GRAPH, plan) == []
    assert_lowest_go(GRAPH, plan, scores)
    assert plan.parameters_after <= (1 - ratio) * BEFORE
    assert all(len(kept) % multiple == 0 for kept in plan.kept.values())


def test_kinds_that_it_takes_whole() -> None:
    target = Target("box", kinds=("mlp",))
    plan = select(GRAPH, random_scores(GRAPH), 0.1, target=target)
    assert {GRAPH[name].kind for name in plan.kept} == {"mlp"}
    assert plan.limits["layers.0.attention:kv"] == "box: attention groups whole"
    with pytest.raises(SelectionError, match=r"left to prune for box, .*go of mlp"):
        select(GRAPH, random_scores(GRAPH), 0.1, ("attention",), target=target)


def test_multiples_are_the_least_common_ones() -> None:
    target = Target("box", multiple_of={"mlp": 4})
    plan = select(GRAPH, random_scores(GRAPH), 0.1, ("mlp",), target=target, multiple_of=3)
    assert {len(kept) for kept in plan.kept.values()} == {12}
    assert set(plan.limits.values()) <= {"box: multiples of 12", "keeps all: scores"}
    assert "box: multiples of 12" in plan.limits.values()


def test_what_it_prefers_gives_way_to_what_is_asked_for() -> None:
    target = Target("box", prefers={"mlp": 7})
    scores = random_scores(GRAPH)
    plan = select(GRAPH, scores, 0.1, ("mlp",), target=target)
    assert {len(kept) for kept in plan.kept.values()} <= {7, 14}
    assert target.reasons(GRAPH, Plan.of(GRAPH, {"layers.0.mlp:units": range(5)})) == []
    for multiple in (3, {"mlp": 3}):
        plan = select(GRAPH, scores, 0.1, ("mlp",), target=target, multiple_of=multiple)
        assert any(len(kept) % 7 for kept in plan.kept.values())
    none = Target("box", prefers={"mlp": 8})  # its size is none
    plan = select(GRAPH, scores, 0.1, ("mlp",), target=none)
    assert plan.kept == select(GRAPH, scores, 0.1, ("mlp",)).kept


def test_numbers_that_may_stay() -> None:
    target = Target("box", kept={("attention", 6): {2, 3, 6}})
    plan = select(GRAPH, random_scores(GRAPH), 0.3, ("attention",), target=target)
    assert {len(kept) for kept in plan.kept.values()} <= {2, 3}
    told = {plan.limits[n] for n, kept in plan.kept.items() if len(kept) == 2}
    assert told == {"box: 2, 3 or 6"}
    whole = Target("box", kept={("attention", 6): ()})
    plan = select(GRAPH, random_scores(GRAPH), 0.1, target=whole)
    assert plan.limits["layers.0.attention:kv"] == "box: it whole"


def test_equal_numbers() -> None:
    target = Target("box", even=True)
    plan = select(GRAPH, random_scores(GRAPH), 0.2, ("mlp",), target=target)
    assert len({len(kept) for kept in plan.kept.values()}) == 1
    for ranking in ("local", "global"):
        with pytest.raises(SelectionError, match=f"box has one number .* ranking='{ranking}'"):
            select(GRAPH, random_scores(GRAPH), 0.2, target=target, ranking=ranking)  # type: ignore[arg-type]
    shares = Budget(units=0.3)
    plan = select(GRAPH, random_scores(GRAPH), budget=shares, target=target)
    assert target.reasons(GRAPH, plan) == []


def test_what_is_protected_protects_all_that_must_be_equal() -> None:
    target = Target("box", even=True)
    graph = llama()
    ignore = ["model.layers.1.mlp.up_proj"]
    plan = select(graph, random_scores(graph), 0.05, target=target, ignore=ignore)
    assert {graph[name].kind for name in plan.kept} == {"attention"}
    why = f"box: as whole as model.layers.1.mlp:units (ignore={ignore[0]})"
    assert plan.limits["model.layers.0.mlp:units"] == why
    with pytest.raises(SelectionError, match=r"1.* as whole as layers.0.*keep_first=1"):
        select(GRAPH, random_scores(GRAPH), 0.1, target=target, keep_first=1)
    plan = select(GRAPH, random_scores(GRAPH), 0.1, target=target, overrides={"layers.1.*": 0.5})
    assert len(plan.kept) == 8


def test_an_earlier_plan_that_it_cannot_take() -> None:
    early = Plan.of(GRAPH, {"channel": range(5)})
    target = Target("box", kinds=("mlp",))
    with pytest.raises(SelectionError, match="channel keeps 5 of 6: box takes channel "):
        select(GRAPH, random_scores(GRAPH), 0.1, ("mlp",), target=target, start=early)


def test_biases_and_depth() -> None:
    target = Target("box")
    with pytest.raises(SelectionError, match="box has no place for new biases"):
        select(GRAPH, random_scores(GRAPH), 0.1, target=target, gain_bias=True)
    for unit in ("attention", "mlp", "branch"):
        with pytest.raises(ServeError, match=r"box cannot leave out .*: it can leave out block"):
            select(GRAPH, {}, depth=Depth(remove=1, unit=unit), target=target)
    Target("box", depth=("attention", "mlp")).check_depth("branch")


def test_the_second_branch_of_a_kind_in_a_place() -> None:
    """As the attention of T5's decoder to its encoder."""
    plan = dataclasses.replace(Plan.of(llama(), {}), removed=("decoder.block.1:attention#2",))
    assert Target("box", depth=("attention",)).reasons(llama(), plan) == []
    (why,) = Target("box", depth=("mlp",)).reasons(llama(), plan)
    assert why == "box cannot leave out decoder.block.1:attention#2: it can leave out mlp"
