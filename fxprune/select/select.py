"""Selection: scores and a pruning ratio become a plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fxprune.errors import SelectionError
from fxprune.plan import Plan
from fxprune.select.budget import ParameterCount
from fxprune.select.candidates import Candidate, candidate, choose_groups
from fxprune.select.rank import Removed, global_ranking, kept_counts, local_ranking, uniform

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

RANKINGS = {"local": local_ranking, "global": global_ranking}


def select(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    pruning_ratio: float | None = None,
    kinds: Collection[str] = ("mlp", "attention"),
    *,
    ranking: Literal["local", "global"] = "local",
    keep_first: int = 0,
    keep_last: int = 0,
    groups: Collection[str] | None = None,
    min_kept: int = 1,
    units: float | None = None,
) -> Plan:
    """Choose the units that stay.

    ``pruning_ratio`` is met to within one unit from below: at most ``(1 - pruning_ratio)`` of the
    parameters stay, and putting back any one removed unit would exceed that.

    Args:
        graph: the groups of the model.
        scores: group name to scores of shape (size,); the lowest go first, equal ones by position.
        pruning_ratio: fraction of the parameters of the whole model to remove, in [0, 1).
        kinds: kinds of groups to prune: ``mlp``, ``attention``, ``query``, ``head_dim``,
            ``channel``, ``expert``, ``other``.
        ranking: ``local`` removes the same fraction of units from every group; ``global`` ranks the
            units of all groups together, by score per parameter relative to their kind.
        keep_first: leave this many layers at the start of every stack alone.
        keep_last: leave this many layers at the end of every stack alone.
        groups: prune these groups, by name, whatever their kind.
        min_kept: units that stay in every group at least.
        units: instead of ``pruning_ratio``, the fraction of units to remove from every group,
            rounded as LLM-Pruner does (arXiv 2305.11627): ``size - int(size * (1 - units))``.

    Raises:
        SelectionError: for a ratio outside [0, 1) or beyond what the chosen groups can give (says
            how much they can), no group to prune (says why), or scores that do not fit.
        GroupError: for a name in ``groups`` that no group has or whose group is frozen.
    """
    if (pruning_ratio is None) == (units is None):
        raise SelectionError("give either pruning_ratio or units")
    if ranking not in RANKINGS:
        raise SelectionError(f"unknown ranking {ranking!r}: choose from {', '.join(RANKINGS)}")
    if min_kept < 1:
        raise SelectionError(f"min_kept={min_kept}: a group cannot lose all its units")
    chosen = choose_groups(graph, kinds, names=groups, keep_first=keep_first, keep_last=keep_last)
    pool = [candidate(group, scores, min_kept) for group in chosen]
    if pruning_ratio is not None:
        check_ratio("pruning_ratio", pruning_ratio)
        removed = _meet(graph, pool, pruning_ratio, ranking)
    else:
        assert units is not None
        check_ratio("units", units)
        if ranking == "global":
            raise SelectionError("units= removes a share of every group: ranking='local' only")
        removed = uniform(pool, units)
    return Plan.of(
        graph,
        {g.name: _kept(g, n) for g, n in zip(pool, removed, strict=True) if n},
        pruning_ratio=pruning_ratio,
        criterion=getattr(scores, "criterion", None),
    )


def _meet(
    graph: DependencyGraph, pool: Sequence[Candidate], pruning_ratio: float, ranking: str
) -> Removed:
    """The numbers of removed units by candidate that meet the ratio."""
    count = ParameterCount(graph, [g.dim for g in pool])
    before = count.total({})
    fewest = count.total(kept_counts(pool, [g.most for g in pool]))
    most_parameters = math.floor((1 - pruning_ratio) * before)
    if fewest > most_parameters:
        largest = math.floor((before - fewest) / before * 1e4) / 1e4
        raise SelectionError(
            f"pruning_ratio={pruning_ratio} cannot be met: the chosen groups can give at most "
            f"{largest:.4f} of the model's {before:,} parameters; choose more kinds or protect less"
        )
    return RANKINGS[ranking](pool, count, most_parameters)


def check_ratio(name: str, ratio: float) -> None:
    """Refuse a fraction outside [0, 1).

    Raises:
        SelectionError: it is outside.
    """
    if not 0 <= ratio < 1:  # also refuses NaN
        raise SelectionError(f"{name}={ratio} is outside [0, 1)")


def _kept(group: Candidate, removed: int) -> list[int]:
    kept: list[int] = np.sort(group.order[removed:]).tolist()
    return kept
