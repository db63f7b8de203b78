"""How far each group goes: the same share of every group, or one ranking over all.

Groups may be bundled: those of a bundle take every step together. By default each is alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fxprune.axes.dims import Dim
from fxprune.select.candidates import EXACT, Candidate, kept_counts, share
from fxprune.select.density import Values
from fxprune.select.limits import Limit

# The step of each candidate, in the order of the candidates.
Steps = list[int]
# Places of the candidates that take every step together.
Bundle = Sequence[int]
Key = tuple[float, ...]


def equal_share(
    groups: Sequence[Candidate], ratio: float, rounding: Literal["up", "down"] = "up"
) -> Steps:
    """The same fraction of units of every group, rounded as LLM-Pruner or as Wanda-sp does.

    Up, as many as :func:`share` says; down, ``int(size * ratio)``. Of a group that cannot lose just
    so many the next smaller number.
    """
    if rounding == "down":
        return [g.step_to(int(g.size * ratio + EXACT)) for g in groups]
    return [g.step_to(share(g.size, g.span, ratio)) for g in groups]


def local_ranking(
    groups: Sequence[Candidate], limits: Sequence[Limit], density: Sequence[Values]
) -> Steps:
    """The same fraction of units of every group, the smallest that meets the limits.

    What rounding took too much is put back step by step: to the group that lost the largest
    share, and among equals to the one whose best removed unit scores highest.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _met(groups, limits, equal_share(groups, middle)):
            high = middle
        else:
            low = middle

    def priority(i: int, step: int) -> Key:
        return (-groups[i].lost(step) / groups[i].size, -density[i][step - 1])

    return _put_back(groups, limits, equal_share(groups, high), priority, alone(groups))


def global_ranking(
    groups: Sequence[Candidate],
    limits: Sequence[Limit],
    density: Sequence[Values],
    bundles: Sequence[Bundle] | None = None,
) -> Steps:
    """One ranking of all steps by density; the shortest start of it that meets the limits.

    Units that would still fit are put back, highest density first. A step of a bundle has the mean
    density of its groups.
    """
    bundles = alone(groups) if bundles is None else bundles
    density = [np.mean([density[i] for i in bundle], axis=0) for bundle in bundles]
    # Only steps that a group may take are ranked, so its best units always stay.
    owner = np.repeat(np.arange(len(bundles)), [groups[bundle[0]].last for bundle in bundles])
    owner = owner[np.argsort(np.concatenate([*density, np.empty(0)]), kind="stable")]

    def start(n: int) -> Steps:
        steps = [0] * len(groups)
        for bundle, taken in zip(
            bundles, np.bincount(owner[:n], minlength=len(bundles)), strict=True
        ):
            for i in bundle:
                steps[i] = int(taken)
        return steps

    low, high = -1, len(owner)
    while high - low > 1:
        middle = (low + high) // 2
        if _met(groups, limits, start(middle)):
            high = middle
        else:
            low = middle

    def priority(i: int, step: int) -> Key:
        return (-density[i][step - 1],)

    return _put_back(groups, limits, start(high), priority, bundles)


def alone(groups: Sequence[Candidate]) -> list[Bundle]:
    """A bundle for each group."""
    return [(i,) for i in range(len(groups))]


def refusals(
    groups: Sequence[Candidate],
    limits: Sequence[Limit],
    steps: Sequence[int],
    bundles: Sequence[Bundle],
) -> list[frozenset[str]]:
    """For every bundle past its first step, the limits that going one step back would break."""
    counts = kept_counts(groups, steps)
    room = [limit.most - limit.count.total(counts) for limit in limits]
    found = []
    for bundle in bundles:
        if steps[bundle[0]]:
            costs = _back(groups, limits, steps, bundle, counts)
            _forth(groups, steps, bundle, counts)
            over = (each.name for each, c, r in zip(limits, costs, room, strict=True) if c > r)
            found.append(frozenset(over))
    return found


def _back(
    groups: Sequence[Candidate],
    limits: Sequence[Limit],
    steps: Sequence[int],
    bundle: Bundle,
    counts: dict[Dim, int],
) -> list[int]:
    """What it adds to each cost when a bundle goes one step back, as ``counts`` says afterwards."""
    costs = [0] * len(limits)
    for i in bundle:
        group, back = groups[i], _block(groups[i], steps[i])
        for place, limit in enumerate(limits):
            costs[place] += limit.count.unit_cost(group.dim, counts, back)
        counts[group.dim] += back
    return costs


def _forth(
    groups: Sequence[Candidate], steps: Sequence[int], bundle: Bundle, counts: dict[Dim, int]
) -> None:
    """Undo :func:`_back` in the counts."""
    for i in bundle:
        counts[groups[i].dim] -= _block(groups[i], steps[i])


def _block(group: Candidate, step: int) -> int:
    """How many units the step took."""
    return group.lost(step) - group.lost(step - 1)


def _met(groups: Sequence[Candidate], limits: Sequence[Limit], steps: Sequence[int]) -> bool:
    counts = kept_counts(groups, steps)
    return all(limit.met(counts) for limit in limits)


def _put_back(
    groups: Sequence[Candidate],
    limits: Sequence[Limit],
    steps: Steps,
    priority: Callable[[int, int], Key],
    bundles: Sequence[Bundle],
) -> Steps:
    """Go back steps, lowest ``priority(bundle, step)`` first, until none fits any more.

    A step that does not fit hardly ever fits later: the room shrinks, and costs grow as other units
    come back. The exception is a bias two groups share, so who was refused is asked again.
    """
    steps = list(steps)
    counts = kept_counts(groups, steps)
    room = [limit.most - limit.count.total(counts) for limit in limits]
    waiting = [place for place, bundle in enumerate(bundles) if steps[bundle[0]]]
    moved = True
    while moved and waiting:
        moved = False
        queue = [(priority(place, steps[bundles[place][0]]), place) for place in waiting]
        heapq.heapify(queue)
        waiting = []
        while queue:
            _, place = heapq.heappop(queue)
            bundle = bundles[place]
            costs = _back(groups, limits, steps, bundle, counts)
            if any(cost > left for cost, left in zip(costs, room, strict=True)):
                _forth(groups, steps, bundle, counts)
                waiting.append(place)
                continue
            moved = True
            room = [left - cost for cost, left in zip(costs, room, strict=True)]
            for i in bundle:
                steps[i] -= 1
            if steps[bundle[0]]:
                heapq.heappush(queue, (priority(place, steps[bundle[0]]), place))
    return steps
