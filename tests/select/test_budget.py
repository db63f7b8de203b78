"""Budgets: several limits at once, all met to within one unit from below."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fxprune
from fxprune import costs
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.select.budget import Budget
from fxprune.select.select import select
from tests.llama import tiny_llama
from tests.select.checks import Limits, assert_lowest_go, assert_met, random_scores
from tests.toys import ToyLM, toy_graph

TOY = toy_graph(ToyLM(layers=3, kv=4, repeat=2, units=15, channels=6))


@functools.cache
def llama() -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama()))


def recount(name: str) -> Any:
    """A cost of the Llama by its own count, apart from the one that selection keeps."""
    graph = llama()
    if name == "params":
        return lambda counts: count_parameters(graph, counts)
    if name == "macs":
        return lambda counts: costs.macs(graph, counts, 2, 16)
    kv = [group.dim for group in graph.groups if group.kind == "attention"]
    return lambda counts: sum(2 * 6 * counts.get(dim, dim.size) for dim in kv)


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(["params", "macs", "kv_cache"]), st.floats(0.4, 1), min_size=1),
    st.booleans(),
    st.sampled_from(["local", "global"]),
    st.sampled_from([("mlp", "attention"), ("attention",), ("mlp", "channel", "attention")]),
    st.sampled_from([1, 2, 8]),
    st.integers(0, 50),
)
def test_all_limits_are_met_from_below(
    fractions: dict[str, float],
    absolute: bool,
    ranking: Any,
    kinds: tuple[str, ...],
    multiple: int,
    seed: int,
) -> None:
    graph = llama()
    limits: Limits = [(recount(name), int(x * recount(name)({}))) for name, x in fractions.items()]
    asked = {name: recount(name)({}) * x for name, x in fractions.items()}
    if not absolute:
        asked = dict(fractions)
    scores = random_scores(graph, seed)
    budget = Budget(**asked, shape=(2, 16))  # type: ignore[arg-type]
    by_kind = {"mlp": multiple, "channel": multiple}
    try:
        plan = select(
            graph, scores, None, kinds, budget=budget, ranking=ranking, multiple_of=by_kind
        )
    except SelectionError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        assume(False)
    attention = {g.name for g in graph.groups if g.kind == "attention"}
    others = set(plan.kept) - attention
    assert_met(graph, plan, limits, 1, others)
    assert_met(graph, plan, limits, multiple, attention)
    assert_lowest_go(graph, plan, scores)
    assert plan.bound is None or set(plan.bound.split(", ")) <= set(fractions)
    assert bool(plan.kept) == (plan.bound is not None)


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("name", ["params", "macs", "kv_cache"])
def test_the_smallest_that_is_possible(name: str, ranking: Any) -> None:
    graph, scores = llama(), random_scores(llama())
    kinds = ("mlp", "attention")

    def ask(stays: float) -> Any:
        return select(
            graph, scores, None, kinds, budget=Budget(**{name: stays}), ranking=ranking, min_kept=2
        )

    with pytest.raises(SelectionError, match=rf"^{name}=0.01 cannot be met: at least") as caught:
        ask(0.01)
    message = str(caught.value)
    least = int(message.split("at least ")[1].split(" ")[0].replace(",", ""))
    fraction = float(message.split("a fraction of ")[1].split(";")[0])
    for stays in (least, fraction):
        plan = ask(stays)
        # The heads are what is scarce; of neurons some may come back if they cost nothing.
        heads = [len(units) for kept, units in plan.kept.items() if "heads" in kept]
        assert heads == [2, 2]
    for stays in (least - 1, fraction - 1e-4):
        with pytest.raises(SelectionError, match="cannot be met"):
            ask(stays)


def test_units_that_free_nothing_stay() -> None:
    for ranking in ("local", "global"):
        plan = select(
            llama(),
            random_scores(llama()),
            budget=Budget(kv_cache=0.7),
            ranking=ranking,  # type: ignore[arg-type]
        )
        assert all("heads" in name for name in plan.kept)
        assert plan.bound == "kv_cache"
        reason = "keeps all: frees nothing that is short"
        assert plan.limits["model.layers.0.mlp:units"] == reason


def test_which_limit_bound() -> None:
    graph, scores = llama(), random_scores(llama())

    def bound(**limits: float) -> str | None:
        return select(graph, scores, budget=Budget(**limits)).bound  # type: ignore[arg-type]

    assert bound(params=0.8, kv_cache=1.0) == "params"
    assert bound(params=0.999, kv_cache=0.5) == "kv_cache"
    assert bound(params=0.7, kv_cache=0.34) == "params, kv_cache"
    assert bound(params=1.0, kv_cache=1.0) is None
    assert bound(units=0.5) == "units"


def test_a_ratio_is_a_budget_of_parameters() -> None:
    for ranking in ("local", "global"):
        scores = random_scores(TOY)
        plan = select(TOY, scores, 0.25, ranking=ranking)  # type: ignore[arg-type]
        same = select(TOY, scores, budget=Budget(params=0.75), ranking=ranking)  # type: ignore[arg-type]
        number = int(0.75 * plan.parameters_before)
        absolute = select(TOY, scores, budget=Budget(params=number), ranking=ranking)  # type: ignore[arg-type]
        assert plan.kept == same.kept == absolute.kept
        assert (plan.pruning_ratio, same.pruning_ratio) == (0.25, None)


@pytest.mark.parametrize("stays", [0, -0.5, float("nan"), float("inf"), True, "much", "150%"])
def test_limits_that_are_none(stays: Any) -> None:
    with pytest.raises(SelectionError, match=r"kv_cache=.*: what stays is a fraction in \(0, 1\]"):
        Budget(kv_cache=stays)


def test_other_bad_budgets() -> None:
    with pytest.raises(SelectionError, match="kv_cache, latency or units"):
        Budget()
    with pytest.raises(SelectionError, match="units= cannot be combined with params="):
        Budget(params=0.8, units=0.2)
    with pytest.raises(SelectionError, match="unknown rounding 'even': choose from up, down"):
        Budget(units=0.2, rounding="even")  # type: ignore[arg-type]
    for shape in ((1, 0), (1,), (1, 2.0)):
        with pytest.raises(SelectionError, match="at least 1 each"):
            Budget(macs=0.8, shape=shape)  # type: ignore[arg-type]
