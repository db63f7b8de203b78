"""The cheapest options of all ladders against every combination tried one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fxprune
from fxprune import Budget
from fxprune.errors import SelectionError
from fxprune.stream.knapsack import Choice, cheapest
from fxprune.stream.ladder import Ladder, Rung
from tests.zoo import BY_NAME


@pytest.fixture(scope="module")
def graph() -> fxprune.DependencyGraph:
    args, kwargs = BY_NAME["llama"].example()
    return fxprune.discover(fxprune.trace(BY_NAME["llama"].build(), args, kwargs))


def drawn(graph: fxprune.DependencyGraph, seed: int, unit: float = 1.0) -> Ladder:
    """Three options of each MLP, every number of heads, and all branches and blocks."""
    generator = torch.Generator().manual_seed(seed)

    def cost(share: float) -> float:
        return float(torch.rand((), generator=generator)) * share

    rungs = {}
    for group in graph.groups:
        if group.kind in ("mlp", "attention"):
            counts = sorted({group.size // 4, group.size // 2, group.size - 1} - {0})
            rungs[group.name] = tuple(
                Rung(count, 0.0, cost(count / group.size)) for count in counts
            )
    units = fxprune.find_branches(graph.traced).units
    return Ladder(rungs, {name: unit * (0.5 + cost(1.0)) for name in units})


def parameters(graph: fxprune.DependencyGraph, choice: Choice) -> int:
    """What stays, counted by a plan."""
    shorter = fxprune.discover(fxprune.bypass(graph.traced, choice.units))
    kept = {
        name: range(graph[name].size - count) for name, count in choice.removed.items() if count
    }
    return fxprune.Plan.of(shorter, {n: list(k) for n, k in kept.items()}).parameters_after


def every(graph: fxprune.DependencyGraph, ladder: Ladder) -> Iterator[Choice]:
    found = fxprune.find_branches(graph.traced)
    for count in range(len(ladder.units) + 1):
        for units in itertools.combinations(ladder.units, count):
            inside = {branch for name in units for branch in found[name].branches}
            if inside & set(units):
                continue
            gone = {p for name in units for p in found[name].parameters}
            left = {
                name: (Rung(0, 0.0, 0.0), *rungs)
                for name, rungs in ladder.rungs.items()
                if not all(site.tensor in gone for site in graph[name].sites)
            }
            for taken in itertools.product(*left.values()):
                yield Choice(
                    {name: rung.removed for name, rung in zip(left, taken, strict=True)},
                    units,
                    sum(r.measured for r in taken) + sum(ladder.units[u] for u in units),
                )


@pytest.mark.parametrize(("ratio", "unit"), [(0.15, 0.3), (0.3, 1.0), (0.45, 0.5)])
def test_nothing_is_cheaper(graph: fxprune.DependencyGraph, ratio: float, unit: float) -> None:
    ladder = drawn(graph, int(ratio * 100), unit)
    whole = graph.traced.module.num_parameters()
    most = math.floor((1 - ratio) * whole)
    found = cheapest(graph, ladder, ratio)
    assert parameters(graph, found) <= most
    ranked = sorted(every(graph, ladder), key=lambda choice: choice.cost)
    best = next(choice for choice in ranked if parameters(graph, choice) <= most)
    assert found.cost == pytest.approx(best.cost)
    assert (found.removed, found.units) == (best.removed, best.units)


def test_several_limits_are_met_at_once(graph: fxprune.DependencyGraph) -> None:
    ladder = drawn(graph, 7, 2.0)
    loose = cheapest(graph, ladder, Budget(params=0.9))
    both = cheapest(graph, ladder, Budget(params=0.9, kv_cache=0.5))
    assert cache(graph, loose) > 0.5
    assert cache(graph, both) <= 0.5
    assert both.cost > loose.cost


def cache(graph: fxprune.DependencyGraph, choice: Choice) -> float:
    """Key and value heads that stay, as a share."""
    heads = [group.name for group in graph.groups if group.kind == "attention"]
    left = sum(graph[name].size - choice.removed[name] for name in heads if name in choice.removed)
    return left / sum(graph[name].size for name in heads)


def test_nothing_goes_where_nothing_is_lacking(graph: fxprune.DependencyGraph) -> None:
    found = cheapest(graph, drawn(graph, 1), Budget(params=1.0))
    assert not found.units
    assert not any(found.removed.values())


def test_what_cannot_be_met_is_refused(graph: fxprune.DependencyGraph) -> None:
    whole: Any = drawn(graph, 1)
    with pytest.raises(SelectionError, match=r"pruning_ratio=0.9 cannot be met by the"):
        cheapest(graph, Ladder(whole.rungs), 0.9)
