"""Which groups may be pruned, and in which order each loses its units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.dims import Dim, find
from fxprune.errors import GroupError, SelectionError
from fxprune.groups.kinds import KINDS

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group that may lose units.

    Attributes:
        name: name of the group.
        kind: kind of the group.
        dim: the dim of its units.
        size: number of units.
        most: how many units it may lose at most.
        order: the units, lowest score first; equal scores by position. Shape (size,).
        scores: the scores in that order, float64, shape (size,).
    """

    name: str
    kind: str
    dim: Dim
    size: int
    most: int
    order: NDArray[np.int64]
    scores: NDArray[np.float64]


def choose_groups(
    graph: DependencyGraph,
    kinds: Collection[str],
    *,
    names: Collection[str] | None = None,
    keep_first: int = 0,
    keep_last: int = 0,
) -> list[Group]:
    """The groups of some kinds, or of some names, outside the protected layers.

    Args:
        graph: the groups of the model.
        kinds: kinds of groups; not looked at where ``names`` are given.
        names: names of groups.
        keep_first: protect this many layers at the start of every stack.
        keep_last: protect this many layers at the end of every stack. Groups that span layers, as
            the residual stream does, belong to none and are not protected.

    Raises:
        GroupError: for a name that no group has.
        SelectionError: if nothing is left, saying which kinds there are and what froze the others.
    """
    if keep_first < 0 or keep_last < 0:
        raise SelectionError("keep_first and keep_last count layers: they cannot be negative")
    if names is not None:
        names = (names,) if isinstance(names, str) else names
        chosen = [_named(graph, name) for name in dict.fromkeys(names)]
    else:
        chosen = _of_kinds(graph, kinds)
    protected = _protected(graph, keep_first, keep_last)
    open_groups = [group for group in chosen if group.layer not in protected]
    if not open_groups:
        raise SelectionError(
            "no group is left to prune: every one chosen is in a protected layer "
            f"(keep_first={keep_first}, keep_last={keep_last})"
            if chosen
            else "no group was chosen"
        )
    return open_groups


def candidate(group: Group, scores: Mapping[str, Any], min_kept: int) -> Candidate:
    """A group with its units in the order in which they go.

    Raises:
        SelectionError: if the scores lack the group, have another length or are not finite.
    """
    if group.name not in scores:
        raise SelectionError(f"no scores for group {group.name!r}")
    values = np.asarray(scores[group.name], dtype=np.float64)
    if values.shape != (group.size,):
        raise SelectionError(
            f"the scores of group {group.name!r} have shape {values.shape}; it has {group.size} "
            "units"
        )
    if not np.isfinite(values).all():
        raise SelectionError(f"the scores of group {group.name!r} are not finite")
    order = np.argsort(values, kind="stable")
    return Candidate(
        name=group.name,
        kind=group.kind,
        dim=find(group.dim),
        size=group.size,
        most=max(group.size - min_kept, 0),
        order=order,
        scores=values[order],
    )


def _named(graph: DependencyGraph, name: str) -> Group:
    group = graph[name]
    if group.reason is not None:
        raise GroupError(f"group {name!r} is frozen: {group.reason}")
    return group


def _of_kinds(graph: DependencyGraph, kinds: Collection[str]) -> list[Group]:
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    for kind in kinds:
        if kind not in KINDS:
            raise SelectionError(f"unknown kind {kind!r}: choose from {', '.join(KINDS)}")
    chosen = [group for group in graph.groups if group.kind in kinds]
    if chosen or not kinds:
        return chosen
    there = sorted({group.kind for group in graph.groups})
    message = f"the model has no prunable group of kind {' or '.join(kinds)}; "
    message += f"kinds it has: {', '.join(there) or 'none'}"
    reasons: dict[str, list[str]] = defaultdict(list)
    for group in graph.frozen:
        if group.kind in kinds:
            reasons[group.reason or "frozen"].append(group.name)
    for reason, names in list(reasons.items())[:5]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        message += f"\n  {names[0]}{others}: {reason}"
    raise SelectionError(message)


def _protected(graph: DependencyGraph, first: int, last: int) -> set[tuple[str, int]]:
    stacks: dict[str, set[int]] = defaultdict(set)
    for group in (*graph.groups, *graph.frozen):
        if group.layer is not None:
            stacks[group.layer[0]].add(group.layer[1])
    protected: set[tuple[str, int]] = set()
    for prefix, layers in stacks.items():
        ordered = sorted(layers)
        kept = ordered[:first] + (ordered[-last:] if last else [])
        protected.update((prefix, layer) for layer in kept)
    return protected
