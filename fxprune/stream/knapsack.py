"""Width and depth in one plan: the cheapest options of all ladders that meet a budget together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fxprune.axes.dims import find
from fxprune.branches import bypass, find_branches
from fxprune.errors import SelectionError
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.select.limits import Limit, limits_of
from fxprune.stream.ladder import Ladder, Rung

if TYPE_CHECKING:
    from fxprune.select.budget import Budget


@dataclass(frozen=True)
class Choice:
    """What :func:`cheapest` chose.

    Attributes:
        removed: of each group that stays, how many units go.
        units: branches and blocks that go, in graph order.
        cost: what the options cost together, in nats per token, each measured alone.
    """

    removed: dict[str, int]
    units: tuple[str, ...]
    cost: float


@dataclass(frozen=True)
class _Option:
    """One thing that may be done.

    Attributes:
        name: of a group, or of a branch or block.
        removed: units of the group that go; None for a branch or block.
        cost: what was measured for it.
        saved: of each limit, what it frees.
        blocks: groups and branches that are gone with it, itself included.
    """

    name: str
    removed: int | None
    cost: float
    saved: tuple[int, ...]
    blocks: frozenset[str]


def cheapest(graph: DependencyGraph, ladder: Ladder, asked: Budget | float) -> Choice:
    """The options of least cost that meet every limit of a budget together.

    One option of every group, or the removal of a branch or block that holds it: a multiple-choice
    knapsack with a row for each limit, solved exactly (``scipy.optimize.milp``). Costs are those
    that were measured one by one, and are added (as in Puzzle, Bercovich et al., arXiv 2411.19146,
    section 3).

    Args:
        graph: the groups of the whole model.
        ladder: the options and what they cost.
        asked: the budget, or the fraction of the parameters that goes.

    Raises:
        SelectionError: no choice meets the budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import

    dims = [find(graph[name].dim) for name in ladder.rungs]
    limits = limits_of(graph, asked, dims)
    options = [*_of_groups(graph, ladder, limits), *_of_units(graph, ladder, asked, limits)]
    whole = {find(graph[name].dim): graph[name].size for name in ladder.rungs}
    lacking = [limit.count.total(whole) - limit.most for limit in limits]
    if all(each <= 0 for each in lacking):
        return Choice(dict.fromkeys(ladder.rungs, 0), (), 0.0)
    names = [*ladder.rungs, *ladder.units]
    once = np.array([[name in option.blocks for option in options] for name in names], float)
    # A branch need not go; a group has one of its options, or goes with what holds it.
    least = np.array([float(name in ladder.rungs) for name in names])
    saved = np.array([option.saved for option in options], float).T
    scale = np.maximum(np.abs(np.array(lacking, float)), 1.0)
    found = milp(
        np.array([option.cost for option in options]),
        constraints=[
            LinearConstraint(once, least, np.ones(len(names))),
            LinearConstraint(saved / scale[:, None], np.array(lacking, float) / scale, np.inf),
        ],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise SelectionError(
            f"{', '.join(limit.asked for limit in limits)} cannot be met by the "
            f"{len(options)} options that were measured: prune more kinds, or let branches go"
        )
    taken = [option for option, x in zip(options, found.x, strict=True) if x > 0.5]
    return Choice(
        {option.name: option.removed for option in taken if option.removed is not None},
        tuple(option.name for option in taken if option.removed is None),
        sum(option.cost for option in taken),
    )


def _of_groups(graph: DependencyGraph, ladder: Ladder, limits: Sequence[Limit]) -> list[_Option]:
    whole = {find(graph[name].dim): graph[name].size for name in ladder.rungs}
    before = [limit.count.total(whole) for limit in limits]
    found = []
    for name, rungs in ladder.rungs.items():
        dim, size = find(graph[name].dim), graph[name].size
        for rung in (Rung(0, 0.0, 0.0), *rungs):
            counts = {**whole, dim: size - rung.removed}
            after = [limit.count.total(counts) for limit in limits]
            saved = tuple(b - a for b, a in zip(before, after, strict=True))
            found.append(_Option(name, rung.removed, rung.measured, saved, frozenset({name})))
    return found


def _of_units(
    graph: DependencyGraph, ladder: Ladder, asked: Budget | float, limits: Sequence[Limit]
) -> list[_Option]:
    traced, branches = graph.traced, find_branches(graph.traced)
    whole = {find(graph[name].dim): graph[name].size for name in ladder.rungs}
    found = []
    for name, cost in ladder.units.items():
        unit = branches[name]
        shorter = limits_of(discover(bypass(traced, [name])), asked, ())
        saved = tuple(
            limit.count.total(whole) - less.count.total({})
            for limit, less in zip(limits, shorter, strict=True)
        )
        gone = {
            each
            for each in ladder.rungs
            if all(site.tensor in unit.parameters for site in graph[each].sites)
        }
        inside = {each for each in unit.branches if each in ladder.units}
        found.append(_Option(name, None, cost, saved, frozenset({name, *gone, *inside})))
    return found
