"""Limits of a budget as numbers of one model, and whether numbers of kept units meet them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.axes.dims import Dim
from fxprune.errors import SelectionError
from fxprune.groups.dependency import discover
from fxprune.select.budget import Budget
from fxprune.select.budgets import COSTS, Count, Setting
from fxprune.select.latency import LatencyTable

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


@dataclass(frozen=True, eq=False)
class Limit:
    """At most so much of one cost.

    Attributes:
        name: of the cost, such as ``params``.
        words: what is counted, in words.
        asked: what was asked for, as text: ``params=0.8``.
        count: counts the cost.
        whole: the cost of the whole model.
        most: how much of it may stay.
    """

    name: str
    words: str
    asked: str
    count: Count
    whole: int
    most: int

    def met(self, counts: Mapping[Dim, int]) -> bool:
        """Whether these numbers of kept units meet it."""
        return self.count.total(counts) <= self.most


def limits_of(
    graph: DependencyGraph,
    budget: Budget | float,
    dims: Iterable[Dim],
    biases: Mapping[str, Set[Dim]] | None = None,
    latency: LatencyTable | None = None,
) -> list[Limit]:
    """The limits of a budget, or of a pruning ratio, on one model.

    Args:
        graph: the groups of the model, perhaps without some branches and blocks; fractions are of
            the whole model all the same.
        budget: the budget, or the fraction of the parameters that goes.
        dims: the dims that may lose units.
        biases: biases that the model gains, see :class:`fxprune.select.budgets.Setting`.
        latency: what was measured, for a limit of it.

    Raises:
        SelectionError: the model has nothing of what a limit is about, or its latency was not
            measured.
    """
    dims = list(dims)
    # Fractions are of the whole model, before branches and blocks went.
    original = graph.traced.original
    before = graph if original is None else discover(original)
    if isinstance(budget, Budget):
        asked = [(name, f"{name}={stays}", stays) for name, stays in budget.limits.items()]
        setting = Setting(budget.shape, biases or {}, latency)
    else:
        asked = [("params", f"pruning_ratio={budget}", 1 - budget)]
        setting = Setting(biases=biases or {})
    found = []
    for name, words, stays in asked:
        cost = COSTS[name]
        count = cost.count(graph, dims, setting)
        whole = cost.whole(before, setting)
        if whole == 0:
            raise SelectionError(f"{words}: the model has no {cost.words} to limit")
        most = math.floor(stays * whole if stays <= 1 else cost.absolute(stays))
        found.append(Limit(name, cost.words, words, count, whole, most))
    return found


def check_possible(
    limits: Sequence[Limit], counts: Mapping[Dim, int], held: Mapping[str, int] | None = None
) -> None:
    """Refuse a limit that cannot be met.

    Args:
        limits: the limits.
        counts: units that stay when every group loses all it may.
        held: what keeps groups from losing more, as it was asked for, to how many groups.

    Raises:
        SelectionError: a limit is exceeded even so; says the least that is possible, and what
            groups are held by.
    """
    for limit in limits:
        least = limit.count.total(counts)
        if least <= limit.most:
            continue
        # Rounded up, so that asking for the fraction named here succeeds.
        share = math.ceil(least / limit.whole * 1e4) / 1e4
        message = (
            f"{limit.asked} cannot be met: at least {least:,} of the model's {limit.whole:,} "
            f"{limit.words} stay, a fraction of {share:.4f}"
        )
        if limit.asked.startswith("pruning_ratio"):
            message += f" (a pruning_ratio of at most {max(1 - share, 0):.4f})"
        if held:
            shown = sorted(held, key=lambda words: -held[words])[:4]
            held_by = [f"{held[words]} by {words}" for words in shown]
            held_by[0] = held_by[0].replace(" by", " groups are held by", 1)
            message += f"; {', '.join(held_by)}"
        raise SelectionError(f"{message}; choose more kinds or protect less")


def binding(limits: Sequence[Limit], refused: Iterable[frozenset[str]]) -> str | None:
    """Which limits bound a selection.

    Args:
        limits: the limits.
        refused: for every group that lost units, the limits that putting one back would break.

    Returns:
        The limits that leave no room for some removed unit, joined by ", "; None if none does.
    """
    bound = frozenset[str]().union(*refused)
    return ", ".join(limit.name for limit in limits if limit.name in bound) or None
