"""Overrides, multiples, biases, schedules, earlier plans; and what the plan says about them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxprune
from fxprune.errors import PlanError, SelectionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.plan import Plan
from fxprune.select.budget import Budget
from fxprune.select.options import layer_ranges
from fxprune.select.schedule import schedule
from fxprune.select.select import select
from tests.llama import tiny_llama
from tests.select.checks import assert_lowest_go, assert_met, random_scores
from tests.toys import ToyLM, toy_graph

GRAPH: Any = toy_graph(ToyLM(layers=4, kv=4, repeat=2, units=21, channels=6))
BEFORE = count_parameters(GRAPH)
RANKINGS = ["local", "global"]


def parameters(ratio: float) -> Any:
    return [(lambda counts: count_parameters(GRAPH, counts), int((1 - ratio) * BEFORE))]


@functools.cache
def llama(tied: bool = True) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama(tie_word_embeddings=tied)))


# Overrides


@pytest.mark.parametrize("ranking", RANKINGS)
def test_overrides_are_fixed_and_the_budget_is_shared_by_the_others(ranking: Any) -> None:
    overrides = {
        "layers.*.mlp:units": 0.3,
        "layers.1.*": 0,
        "layers.2.attention:kv": 0.5,
        "layers.3.mlp*": 0.0,
    }
    scores = random_scores(GRAPH)
    plan = select(GRAPH, scores, 0.3, ranking=ranking, overrides=overrides)
    kept = {name: len(units) for name, units in plan.kept.items()}
    # 21 - int(21 * 0.7) of 21 go; the last pattern that matches counts.
    assert kept.pop("layers.0.mlp:units") == kept.pop("layers.2.mlp:units") == 14
    assert kept.pop("layers.2.attention:kv") == 2
    assert set(kept) <= {"layers.0.attention:kv", "layers.3.attention:kv"}
    assert_met(GRAPH, plan, parameters(0.3), fixed={n for n in plan.kept if n not in kept})
    assert_lowest_go(GRAPH, plan, scores)
    assert plan.limits["layers.2.attention:kv"] == "override 0.5"
    assert plan.limits["layers.1.mlp:units"] == "override 0"


def test_an_override_that_is_enough_by_itself() -> None:
    plan = select(GRAPH, random_scores(GRAPH), 0.01, overrides={"layers.0.mlp:units": 0.5})
    assert {name: len(units) for name, units in plan.kept.items()} == {"layers.0.mlp:units": 10}
    assert plan.bound is None


def test_overrides_beside_a_share_of_units() -> None:
    overrides = {"layers.0.*": 0, "layers.1.mlp:units": 0.9}
    plan = select(GRAPH, random_scores(GRAPH), budget=Budget(units=0.25), overrides=overrides)
    found = {name: len(units) for name, units in plan.kept.items() if "mlp" in name}
    assert found == {f"layers.{i}.mlp:units": n for i, n in ((1, 2), (2, 15), (3, 15))}


def test_a_protected_group_needs_no_scores() -> None:
    scores = random_scores(GRAPH)
    del scores["layers.0.mlp:units"]
    plan = select(GRAPH, scores, 0.2, overrides={"layers.0.mlp:units": 0})
    assert "layers.0.mlp:units" not in plan.kept


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"layer.0.mlp:unit": 0.1},
            r"'layer\.0\.mlp:unit' matches no group; close: layers\.0\.mlp",
        ),
        ({"*.mlp:units": 1.0}, r"override of '\*\.mlp:units'=1\.0 is outside \[0, 1\)"),
        ({"*.mlp:units": -0.1}, r"is outside \[0, 1\)"),
        ({"channel": 0.1}, "matches 'channel', which is not to be pruned"),
        ({"*:head_dim": 0.1}, "which is not to be pruned: it is frozen"),
    ],
)
def test_overrides_that_cannot_be(overrides: dict[str, float], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        select(GRAPH, random_scores(GRAPH), 0.2, overrides=overrides)


def test_protecting_what_is_not_pruned_anyway() -> None:
    plan = select(GRAPH, random_scores(GRAPH), 0.2, overrides={"channel": 0, "*:head_dim": 0})
    assert plan == select(GRAPH, random_scores(GRAPH), 0.2)


def test_overrides_can_make_a_budget_impossible() -> None:
    with pytest.raises(SelectionError, match="cannot be met"):
        select(GRAPH, random_scores(GRAPH), 0.2, overrides={"*": 0})


# Multiples


@settings(max_examples=60)
@given(
    st.floats(0, 0.5), st.sampled_from(RANKINGS), st.sampled_from([2, 3, 4, 8]), st.integers(0, 30)
)
def test_multiples(ratio: float, ranking: Any, multiple: int, seed: int) -> None:
    scores = random_scores(GRAPH, seed)
    try:
        plan = select(GRAPH, scores, ratio, ranking=ranking, multiple_of=multiple)
    except SelectionError as error:
        assert "cannot be met" in str(error)  # noqa: PT017
        return
    assert_met(GRAPH, plan, parameters(ratio), multiple)
    assert_lowest_go(GRAPH, plan, scores)


def test_multiples_of_shares_and_by_kind() -> None:
    plan = select(
        GRAPH,
        random_scores(GRAPH),
        budget=Budget(units=0.5),
        multiple_of={"mlp": 8},
        overrides={"layers.0.mlp:units": 0.7},
    )
    kept = {name: len(units) for name, units in plan.kept.items()}
    # 11 of 21 may go, 10 would stay: rounded up to 16. 15 may go, 6 would stay: 8.
    assert [kept[f"layers.{i}.mlp:units"] for i in range(4)] == [8, 16, 16, 16]
    assert {n for name, n in kept.items() if "kv" in name} == {2}


def test_a_group_no_larger_than_the_multiple_keeps_all() -> None:
    plan = select(GRAPH, random_scores(GRAPH), 0.1, multiple_of=4)
    assert all("mlp" in name for name in plan.kept)
    assert plan.limits["layers.0.attention:kv"] == "multiple_of=4"


# Biases


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("kinds", [("mlp", "attention"), ("attention", "query"), ("channel",)])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.2])
def test_consumers_gain_biases_that_are_counted(ranking: Any, kinds: Any, ratio: float) -> None:
    graph = llama(tied=False)
    scores = random_scores(graph)
    plan = select(graph, scores, ratio, kinds, ranking=ranking, gain_bias=True)
    counts = plan.kept_counts(graph)
    linears = {
        "mlp": ["mlp.down_proj"],
        "attention": ["self_attn.o_proj"],
        "query": ["self_attn.o_proj"],
    }

    def gained(kept: dict[Any, int]) -> set[str]:
        if kinds == ("channel",):
            names = ["self_attn." + x for x in ("q_proj", "k_proj", "v_proj")]
            names += ["mlp.gate_proj", "mlp.up_proj"]
            every = {f"model.layers.{i}.{name}.bias" for i in range(2) for name in names}
            return every | {"lm_head.bias"} if kept else set()
        losing = [g for g in graph.groups if kept.get(g.dim, g.size) < g.size]
        return {
            f"model.layers.{g.layer[1]}.{name}.bias"
            for g in losing
            if g.layer
            for name in linears[g.kind]
        }

    def cost(kept: Any) -> int:
        width = {"q_proj": 36, "k_proj": 18, "v_proj": 18, "gate_proj": 40, "up_proj": 40}
        width |= {"o_proj": 36, "down_proj": 36, "lm_head": 90}
        biases = sum(width[name.split(".")[-2]] for name in gained(kept))
        return count_parameters(graph, kept) + biases

    assert set(plan.biases) == gained(counts)
    assert plan.parameters_after == cost(counts)
    assert_met(graph, plan, [(cost, int((1 - ratio) * count_parameters(graph)))])
    plain = select(graph, scores, ratio, kinds, ranking=ranking)
    assert plain.biases == ()


def test_a_tied_head_gains_no_bias() -> None:
    graph = llama()
    plan = select(graph, random_scores(graph), 0.1, ("channel",), gain_bias=True)
    assert len(plan.biases) == 10
    assert not any("embed" in name or "head" in name for name in plan.biases)


def test_what_has_a_bias_gains_none() -> None:
    traced = fxprune.trace(tiny_llama(attention_bias=True, mlp_bias=True))
    graph = fxprune.discover(traced)
    assert select(graph, random_scores(graph), 0.2, gain_bias=True).biases == ()


def test_only_a_linear_gains_a_bias() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 9), torch.nn.Linear(9, 3, bias=False)
            self.c = torch.nn.Linear(9, 3, bias=False)
            self.d = torch.nn.Linear(4, 7)
            self.e, self.f = (torch.nn.Linear(7, 3, bias=False) for _ in range(2))
            self.g, self.h = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3, bias=False)
            self.f.weight = self.e.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, d, g = self.a(x).relu(), self.d(x).relu(), self.g(x).relu()
            # c is not a call of a Linear; e and f share a weight and would each have a bias.
            return self.b(a) + a @ self.c.weight.T + self.e(d) + self.f(d).relu() + self.h(g)

    graph = fxprune.discover(fxprune.trace(Model(), (torch.randn(2, 4),)))
    budget = Budget(units=0.5)
    assert select(graph, random_scores(graph), budget=budget, gain_bias=True).biases == (
        "b.bias",
        "h.bias",
    )


# Schedules and earlier plans


def test_schedules_are_linear() -> None:
    assert schedule(4, 0.2) == pytest.approx((0.05, 0.1, 0.15, 0.2))
    assert schedule(3, 0.1)[-1] == 0.1
    assert schedule(1, 0.5) == (0.5,)
    with pytest.raises(SelectionError, match="steps=0: a schedule has at least one step"):
        schedule(0, 0.2)
    with pytest.raises(SelectionError, match=r"final_ratio=1\.0 is outside"):
        schedule(2, 1.0)


@settings(max_examples=40)
@given(st.sampled_from(RANKINGS), st.integers(0, 30), st.sampled_from([1, 4]), st.booleans())
def test_what_an_earlier_plan_removed_stays_removed(
    ranking: Any, seed: int, multiple: int, channel: bool
) -> None:
    first = ("mlp", "channel") if channel else ("mlp", "attention")
    early = select(GRAPH, random_scores(GRAPH, seed), 0.1, first, ranking=ranking)
    scores = random_scores(GRAPH, seed + 1)
    for name, kept in early.kept.items():
        gone = sorted(set(range(early.sizes[name])).difference(kept))
        scores[name][gone] = torch.tensor(float("nan"), dtype=torch.float64)
    plan = select(GRAPH, scores, 0.25, ranking=ranking, start=early, multiple_of=multiple)
    for name, kept in early.kept.items():
        assert set(plan.kept[name]) <= set(kept)
    if channel:
        assert plan.kept["channel"] == early.kept["channel"]
    assert plan.parameters_after <= 0.75 * BEFORE
    counts = plan.kept_counts(GRAPH)
    for name, kept in plan.kept.items():
        # Whatever this step removed more than it had to could come back.
        size = len(early.kept.get(name, range(GRAPH[name].size)))
        if name == "channel" or size == len(kept) or multiple > 1:
            continue
        more = {**counts, GRAPH[name].dim: len(kept) + 1}
        assert count_parameters(GRAPH, more) > int(0.75 * BEFORE)


def test_steps_by_share_are_those_of_llm_pruner() -> None:
    """``n = now - int(size * (1 - ratio))`` units go in each step, of the original size."""
    plan = None
    kept = 21
    for step, ratio in enumerate(schedule(3, 0.5)):
        scores = random_scores(GRAPH, step)
        plan = select(GRAPH, scores, None, "mlp", budget=Budget(units=ratio), start=plan)
        kept -= kept - int(21 * (1 - ratio))
        assert {len(units) for units in plan.kept.values()} == {kept}
    assert kept == 10


def test_a_plan_that_is_enough_already() -> None:
    early = select(GRAPH, random_scores(GRAPH), 0.3)
    for ranking in RANKINGS:
        later = select(GRAPH, random_scores(GRAPH, 1), 0.2, ranking=ranking, start=early)  # type: ignore[arg-type]
        assert later.kept == early.kept


def test_biases_of_an_earlier_plan_stay() -> None:
    graph = llama()
    early = select(graph, random_scores(graph), 0.1, ("mlp",), gain_bias=True)
    later = select(graph, random_scores(graph, 1), 0.2, ("attention",), start=early)
    assert later.biases == early.biases != ()
    after = count_parameters(graph, later.kept_counts(graph), later.biases)
    assert later.parameters_after == after <= 0.8 * count_parameters(graph)


def test_an_earlier_plan_of_another_model() -> None:
    other: Any = toy_graph(ToyLM(units=5))
    early = Plan.of(other, {"layers.0.mlp:units": [0]})
    with pytest.raises(PlanError, match="another model"):
        select(GRAPH, random_scores(GRAPH), 0.2, start=early)


# What the plan says


def test_what_limited_single_groups() -> None:
    scores = random_scores(GRAPH)
    scores["layers.2.mlp:units"] += 100
    # All that the others can give: two of four heads twice, 19 of 21 neurons.
    most = 4 * 4 * (2 * 2 * 6 + 2 + 2 * 6) + 19 * 3 * 6
    plan = select(
        GRAPH,
        scores,
        (most - 1) / BEFORE,
        ranking="global",
        normalise="none",
        cost_aware=False,
        keep_first=1,
        keep_last=1,
        min_kept=2,
    )
    assert plan.bound == "params"
    assert plan.limits == {
        "layers.0.attention:kv": "keep_first=1",
        "layers.0.mlp:units": "keep_first=1",
        "layers.3.attention:kv": "keep_last=1",
        "layers.3.mlp:units": "keep_last=1",
        "layers.1.mlp:units": "min_kept=2",
        "layers.1.attention:kv": "min_kept=2",
        "layers.2.attention:kv": "min_kept=2",
        "layers.2.mlp:units": "keeps all: scores",
    }


def test_nothing_special_is_not_listed() -> None:
    plan = select(GRAPH, random_scores(GRAPH), 0.2, ranking="local")
    assert (plan.limits, plan.bound) == ({}, "params")
    assert select(GRAPH, random_scores(GRAPH), 0.0).bound is None


# Layers by number


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("4-20,25", "4-20,25"),
        (" 3 , 0-1,2", "0-3"),
        (7, "7"),
        (range(4, 7), "4-6"),
        ([9, 1, 3, 2], "1-3,9"),
        (None, None),
    ],
)
def test_layers_in_one_form(given: Any, text: str | None) -> None:
    assert layer_ranges(given) == text
    assert layer_ranges(text) == text


@pytest.mark.parametrize("given", ["", "a", "3-1", "1-", "-1", (), [-1], [1.5], True])
def test_layers_that_are_none(given: Any) -> None:
    with pytest.raises(SelectionError, match="numbers of layers, such as '4-20,25'"):
        layer_ranges(given)


@pytest.mark.parametrize("ranking", [*RANKINGS, "uniform"])
def test_only_these_layers(ranking: Any) -> None:
    kinds = ("mlp", "attention", "channel")
    plan = select(GRAPH, random_scores(GRAPH), 0.2, kinds, ranking=ranking, layers=range(1, 3))
    assert plan.kept
    assert all(name.startswith(("layers.1.", "layers.2.")) for name in plan.kept)
    assert plan.limits["layers.3.mlp:units"] == plan.limits["channel"] == "layers=1-2"


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(SelectionError, match="there is no layer 4, the model has layers 0 to 3"):
        select(GRAPH, random_scores(GRAPH), 0.2, layers="2-5")
    with pytest.raises(SelectionError, match=r"every one chosen is protected \(layers=1\)"):
        select(GRAPH, random_scores(GRAPH), 0.1, "channel", layers=1)
