"""How many units each group loses: the same share of every group, or one ranking over all."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.dims import Dim
from fxprune.select.budget import ParameterCount
from fxprune.select.candidates import Candidate

# Number of removed units by candidate, in the order of the candidates.
Removed = list[int]
Key = tuple[float, ...]


def kept_counts(groups: Sequence[Candidate], removed: Sequence[int]) -> dict[Dim, int]:
    """The numbers of kept units by dim."""
    return {g.dim: g.size - n for g, n in zip(groups, removed, strict=True)}


def uniform(groups: Sequence[Candidate], ratio: float) -> Removed:
    """The same fraction of units of every group, rounded as LLM-Pruner does.

    ``n = size - int(size * (1 - ratio))`` (``prune_local`` in their code), and never more than the
    group may lose.
    """
    return [min(g.size - int(g.size * (1 - ratio)), g.most) for g in groups]


def local_ranking(
    groups: Sequence[Candidate], count: ParameterCount, most_parameters: int
) -> Removed:
    """The same fraction of units of every group, the smallest that meets the budget.

    What rounding took too much is put back unit by unit: to the group that lost the largest
    share, and among equals to the one whose best removed unit scores highest.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if count.total(kept_counts(groups, uniform(groups, middle))) > most_parameters:
            low = middle
        else:
            high = middle
    removed = uniform(groups, high)
    density = densities(groups, count)

    def priority(i: int, n: int) -> Key:
        return (-n / groups[i].size, -density[i][n - 1])

    return _put_back(groups, removed, count, most_parameters, priority)


def global_ranking(
    groups: Sequence[Candidate], count: ParameterCount, most_parameters: int
) -> Removed:
    """One ranking of all units by score per parameter; the shortest start that meets the budget.

    The parameters that a unit frees are part of its rank (see :func:`densities`). Units that would
    still fit are put back, highest rank first.
    """
    density = densities(groups, count)
    owner = np.concatenate([np.full(g.most, i) for i, g in enumerate(groups)])
    # Only the units that a group may lose are ranked, so its best min_kept always stay.
    ranking = np.concatenate([density[i][: g.most] for i, g in enumerate(groups)])
    owner = owner[np.argsort(ranking, kind="stable")]

    def start(n: int) -> Removed:
        return [int(k) for k in np.bincount(owner[:n], minlength=len(groups))]

    low, high = -1, len(owner)
    while high - low > 1:
        middle = (low + high) // 2
        if count.total(kept_counts(groups, start(middle))) > most_parameters:
            low = middle
        else:
            high = middle

    def priority(i: int, n: int) -> Key:
        return (-density[i][n - 1],)

    return _put_back(groups, start(high), count, most_parameters, priority)


def densities(groups: Sequence[Candidate], count: ParameterCount) -> list[NDArray[np.float64]]:
    """Score per parameter of every unit, in each group's order.

    Scores of different kinds of groups are sums over different numbers of weights and have no
    common scale, so the densities of a kind are divided by their mean over the whole model. What
    remains is how a unit compares with others of its kind, per parameter that it frees.
    """
    result = [g.scores / max(-count.unit_cost(g.dim, {}, -1), 1) for g in groups]
    of_kind: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for group, density in zip(groups, result, strict=True):
        of_kind[group.kind].append(np.abs(density))
    mean = {kind: float(np.concatenate(d).mean()) for kind, d in of_kind.items()}
    return [d / (mean[g.kind] or 1.0) for g, d in zip(groups, result, strict=True)]


def _put_back(
    groups: Sequence[Candidate],
    removed: Removed,
    count: ParameterCount,
    most_parameters: int,
    priority: Callable[[int, int], Key],
) -> Removed:
    """Put removed units back, lowest ``priority(group, removed there)`` first, while they fit.

    A unit that does not fit never fits later: the room shrinks, and costs only grow as other units
    come back. So each group is dropped once, and in the end no single unit fits.
    """
    removed = list(removed)
    counts = kept_counts(groups, removed)
    room = most_parameters - count.total(counts)
    queue = [(priority(i, n), i) for i, n in enumerate(removed) if n]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        dim = groups[i].dim
        cost = count.unit_cost(dim, counts)
        if cost > room:
            continue
        room -= cost
        counts[dim] += 1
        removed[i] -= 1
        if removed[i]:
            heapq.heappush(queue, (priority(i, removed[i]), i))
    return removed
