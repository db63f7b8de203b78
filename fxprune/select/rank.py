"""How far each group goes: the same share of every group, or one ranking over all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from fxprune.select.candidates import EXACT, Candidate, kept_counts, share
from fxprune.select.density import Values
from fxprune.select.limits import Limit

# The step of each candidate, in the order of the candidates.
Steps = list[int]
Key = tuple[float, ...]


def uniform(
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
        if _met(groups, limits, uniform(groups, middle)):
            high = middle
        else:
            low = middle

    def priority(i: int, step: int) -> Key:
        return (-groups[i].lost(step) / groups[i].size, -density[i][step - 1])

    return _put_back(groups, limits, uniform(groups, high), priority)


def global_ranking(
    groups: Sequence[Candidate], limits: Sequence[Limit], density: Sequence[Values]
) -> Steps:
    """One ranking of all steps by density; the shortest start of it that meets the limits.

    Units that would still fit are put back, highest density first.
    """
    # Only steps that a group may take are ranked, so its best units always stay.
    owner = np.repeat(np.arange(len(groups)), [g.last for g in groups])
    owner = owner[np.argsort(np.concatenate([*density, np.empty(0)]), kind="stable")]

    def start(n: int) -> Steps:
        return [int(k) for k in np.bincount(owner[:n], minlength=len(groups))]

    low, high = -1, len(owner)
    while high - low > 1:
        middle = (low + high) // 2
        if _met(groups, limits, start(middle)):
            high = middle
        else:
            low = middle

    def priority(i: int, step: int) -> Key:
        return (-density[i][step - 1],)

    return _put_back(groups, limits, start(high), priority)


def refusals(
    groups: Sequence[Candidate], limits: Sequence[Limit], steps: Sequence[int]
) -> list[frozenset[str]]:
    """For every group past its first step, the limits that going one step back would break."""
    counts = kept_counts(groups, steps)
    room = [limit.most - limit.count.total(counts) for limit in limits]
    found = []
    for group, step in zip(groups, steps, strict=True):
        if step:
            back = group.lost(step) - group.lost(step - 1)
            costs = [limit.count.unit_cost(group.dim, counts, back) for limit in limits]
            over = (each.name for each, c, r in zip(limits, costs, room, strict=True) if c > r)
            found.append(frozenset(over))
    return found


def _met(groups: Sequence[Candidate], limits: Sequence[Limit], steps: Sequence[int]) -> bool:
    counts = kept_counts(groups, steps)
    return all(limit.met(counts) for limit in limits)


def _put_back(
    groups: Sequence[Candidate],
    limits: Sequence[Limit],
    steps: Steps,
    priority: Callable[[int, int], Key],
) -> Steps:
    """Go back steps, lowest ``priority(group, step)`` first, until none fits any more.

    A step that does not fit hardly ever fits later: the room shrinks, and costs grow as other units
    come back. The exception is a bias two groups share, so who was refused is asked again.
    """
    steps = list(steps)
    counts = kept_counts(groups, steps)
    room = [limit.most - limit.count.total(counts) for limit in limits]
    waiting = [i for i, step in enumerate(steps) if step]
    moved = True
    while moved and waiting:
        moved = False
        queue = [(priority(i, steps[i]), i) for i in waiting]
        heapq.heapify(queue)
        waiting = []
        while queue:
            _, i = heapq.heappop(queue)
            group = groups[i]
            back = group.lost(steps[i]) - group.lost(steps[i] - 1)
            costs = [limit.count.unit_cost(group.dim, counts, back) for limit in limits]
            if any(cost > left for cost, left in zip(costs, room, strict=True)):
                waiting.append(i)
                continue
            moved = True
            room = [left - cost for cost, left in zip(costs, room, strict=True)]
            counts[group.dim] += back
            steps[i] -= 1
            if steps[i]:
                heapq.heappush(queue, (priority(i, steps[i]), i))
    return steps
