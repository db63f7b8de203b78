"""Densities against their formulas, and what a global ranking makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.groups.parameters import count_parameters
from fxprune.importance.scores import Scores
from fxprune.select.budget import Budget
from fxprune.select.candidates import at_step, candidate
from fxprune.select.density import densities, unit_costs
from fxprune.select.limits import limits_of
from fxprune.select.select import select
from tests.select.checks import assert_lowest_go, assert_met, random_scores
from tests.toys import ToyLM, toy_graph

GRAPH = toy_graph(ToyLM(layers=2, kv=4, units=11))
GROUPS = [g for g in GRAPH.groups if g.kind in ("mlp", "attention")]
COST = {"mlp": 3 * 8, "attention": 4 * (2 * 3 * 8 + 3 + 2 * 8)}  # o and q with its bias; k and v


@pytest.mark.parametrize("cost_aware", [True, False])
@pytest.mark.parametrize("normalise", ["kind", "group", "standardise", "none"])
def test_densities_by_the_formulas(normalise: Any, cost_aware: bool) -> None:
    scores = random_scores(GRAPH)
    pool = [candidate(group, scores) for group in GROUPS]
    costs = unit_costs(pool, limits_of(GRAPH, 0.3, [g.dim for g in GROUPS]))  # type: ignore[arg-type]
    assert costs == [COST[g.kind] for g in GROUPS]
    found = densities(pool, costs, normalise, cost_aware)
    plain = {
        g.name: [s / (COST[g.kind] if cost_aware else 1) for s in sorted(scores[g.name].tolist())]
        for g in GROUPS
    }
    for group, values in zip(GROUPS, found, strict=True):
        same = [x for g in GROUPS if g.kind == group.kind for x in plain[g.name]]
        mine = plain[group.name]
        mean = sum(mine) / len(mine)
        deviation = (sum((x - mean) ** 2 for x in mine) / (len(mine) - 1)) ** 0.5
        expected = {
            "kind": [x / (sum(same) / len(same)) for x in mine],
            "group": [x / mean for x in mine],
            "standardise": [(x - mean) / deviation for x in mine],
            "none": mine,
        }[normalise]
        # The last unit stays whatever happens.
        np.testing.assert_allclose(values, expected[:-1], rtol=1e-12, atol=1e-12)


def test_weights_of_kinds_belong_to_the_scores() -> None:
    """They count in a global ranking that has no normalisation of its own."""
    values = random_scores(GRAPH)
    by_hand = {g.name: values[g.name] * (60.0 if g.kind == "attention" else 1.0) for g in GROUPS}
    own = Scores(values, "drawn", {"normalise": "none", "weights": {"attention": 60.0}})
    expected = select(GRAPH, by_hand, 0.2, ranking="global", normalise="none")  # type: ignore[arg-type]
    assert select(GRAPH, own, 0.2, ranking="global").kept == expected.kept  # type: ignore[arg-type]
    plain = select(GRAPH, values, 0.2, ranking="global", normalise="none")  # type: ignore[arg-type]
    assert plain.kept != expected.kept
    asked = select(GRAPH, own, 0.2, ranking="global", normalise="none")  # type: ignore[arg-type]
    assert asked.kept == plain.kept


def test_a_block_has_the_mean_density_of_its_units() -> None:
    group = GROUPS[1]
    scores = random_scores(GRAPH)
    pool = [candidate(group, scores, multiple=4)]
    (found,) = densities(pool, [2.0], "none")
    s = sorted(scores[group.name].tolist())
    np.testing.assert_allclose(found, [sum(s[:3]) / 6, sum(s[3:7]) / 8])
    assert densities([at_step(pool[0], 1)], [2.0], "none")[0].size == 0


def test_scores_that_are_all_alike() -> None:
    scores = {g.name: np.zeros(g.size) for g in GROUPS}
    for normalise in ("kind", "group", "standardise", "none"):
        for values in densities([candidate(g, scores) for g in GROUPS], [1.0] * 4, normalise):
            assert (values == 0).all()


def test_several_limits_share_the_cost_by_what_is_short() -> None:
    """By hand: a limit that is met counts nothing, the others by the fraction of their excess."""
    dims = [g.dim for g in GROUPS]
    limits = limits_of(GRAPH, Budget(params=0.6), dims)  # type: ignore[arg-type]
    limits += limits_of(GRAPH, Budget(params=0.9), dims)  # type: ignore[arg-type]
    limits += limits_of(GRAPH, Budget(params=1.0), dims)  # type: ignore[arg-type]
    before = count_parameters(GRAPH)  # type: ignore[arg-type]
    short = [before - int(0.6 * before), before - int(0.9 * before)]
    found = unit_costs([candidate(g, random_scores(GRAPH)) for g in GROUPS], limits)
    expected = [COST[g.kind] / short[0] + COST[g.kind] / short[1] for g in GROUPS]
    assert found == pytest.approx(expected, rel=1e-12)


@given(st.floats(0.01, 0.5), st.integers(0, 30), st.sampled_from(["none", "standardise"]))
def test_score_order_with_cumulative_cost(ratio: float, seed: int, normalise: Any) -> None:
    """FLAP's way: units go in the order of their scores until enough parameters have gone."""
    scores = random_scores(GRAPH, seed)
    plan = select(
        GRAPH,  # type: ignore[arg-type]
        scores,
        ratio,
        ranking="global",
        normalise=normalise,
        cost_aware=False,
    )
    before = count_parameters(GRAPH)  # type: ignore[arg-type]
    most = int((1 - ratio) * before)
    assert_met(GRAPH, plan, [(lambda counts: count_parameters(GRAPH, counts), most)])  # type: ignore[arg-type]
    assert_lowest_go(GRAPH, plan, scores)

    queue = []
    for place, group in enumerate(GROUPS):
        values = scores[group.name].numpy()
        if normalise == "standardise":
            values = (values - values.mean()) / values.std(ddof=1)
        queue += [(v, place, i) for i, v in enumerate(sorted(values)[:-1])]
    lost = dict.fromkeys(range(len(GROUPS)), 0)
    gone: list[tuple[float, int]] = []
    kept = before
    for value, place, _ in sorted(queue):
        if kept <= most:
            break
        lost[place] += 1
        kept -= COST[GROUPS[place].kind]
        gone.append((-value, place))
    for _, place in sorted(gone):
        if kept + COST[GROUPS[place].kind] <= most:
            lost[place] -= 1
            kept += COST[GROUPS[place].kind]
    found = {name: len(units) for name, units in plan.kept.items()}
    assert found == {g.name: g.size - lost[i] for i, g in enumerate(GROUPS) if lost[i]}
