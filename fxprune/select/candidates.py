"""Which groups may be pruned, and in which order and steps each loses its units."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.dims import Dim, find
from fxprune.axes.positions import kept_size
from fxprune.errors import CriterionError, FxpruneWarning, GroupError, SelectionError
from fxprune.groups.kinds import KINDS
from fxprune.importance.criterion import Criterion
from fxprune.importance.estimate import check_scorable
from fxprune.importance.experts import REAP
from fxprune.importance.taylor import Taylor
from fxprune.select.options import layer_numbers
from fxprune.trace.ignored import ignored

if TYPE_CHECKING:
    from torch import nn

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group

EXACT = 1e-9  # so that a third of three is one, whatever floats make of it


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group that may lose units, in steps.

    Attributes:
        name: name of the group.
        kind: kind of the group.
        dim: the dim of its units.
        size: number of units.
        span: positions of a unit on the axis where it has fewest: of a head, its channels.
        levels: how many units it may have lost, ascending, int64. The first is where it starts,
            each further one a step of one block of units. One level: the group stays as it is.
        order: the units, those lost at the start first, then lowest score first; equal scores by
            position. Shape (size,).
        scores: the scores of those not lost at the start, in that order, float64.
    """

    name: str
    kind: str
    dim: Dim
    size: int
    span: int
    levels: NDArray[np.int64]
    order: NDArray[np.int64]
    scores: NDArray[np.float64]

    @property
    def last(self) -> int:
        """The step at which it has lost all it may."""
        return len(self.levels) - 1

    def lost(self, step: int) -> int:
        """How many units it has lost at a step."""
        return int(self.levels[step])

    def step_to(self, lost: int) -> int:
        """The furthest step at which no more than so many units are lost (at least the first)."""
        return max(int(np.searchsorted(self.levels, lost, side="right")) - 1, 0)

    def kept(self, step: int) -> list[int]:
        """The units that stay at a step, ascending."""
        units: list[int] = np.sort(self.order[self.lost(step) :]).tolist()
        return units


def scorable(
    model: nn.Module, graph: DependencyGraph, criterion: Criterion, groups: Sequence[Group]
) -> Criterion:
    """A criterion, or REAP of experts alone, or Taylor, where it cannot score some groups.

    Warns:
        FxpruneWarning: it is another.
    """
    others: list[Criterion] = [Taylor()]
    if all(group.kind == "expert" for group in groups):
        others.insert(0, REAP())
    for other in others:
        try:
            check_scorable(model, graph, criterion, groups)
        except CriterionError as error:
            named = type(other).__name__
            warnings.warn(f"scored by {named}(): {error}", FxpruneWarning, stacklevel=3)
            criterion = other
    return criterion


def choose_groups(
    graph: DependencyGraph,
    kinds: Collection[str],
    *,
    names: Collection[str] | None = None,
    keep_first: int = 0,
    keep_last: int = 0,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    layers: str | None = None,
) -> tuple[list[Group], dict[str, str]]:
    """The groups of some kinds, or of some names, outside the protected layers.

    Args:
        graph: the groups of the model.
        kinds: kinds of groups; not looked at where ``names`` are given.
        names: names of groups.
        keep_first: protect this many layers at the start of every stack.
        keep_last: protect this many layers at the end of every stack. Groups that span layers, as
            the residual stream does, belong to none and are not protected.
        ignore: names of modules, or :mod:`fnmatch` patterns, whose tensors are left as they are:
            every group that has a site in one is protected.
        only: likewise; every group that has a site outside of these is protected.
        layers: numbers of layers, ``4-20,25``; every group that does not lie in one of them, of any
            stack, is protected.

    Returns:
        The groups; and the names of those that are protected, each with the option that does it:
        ``keep_first=4``.

    Raises:
        GroupError: for a name that no group has.
        SelectionError: a name in ``ignore`` or ``only`` is no module's; a layer does not exist; or
            nothing is left, saying which kinds there are and what froze the others.
    """
    if keep_first < 0 or keep_last < 0:
        raise SelectionError("keep_first and keep_last count layers: they cannot be negative")
    if names is not None:
        names = (names,) if isinstance(names, str) else names
        chosen = [_named(graph, name) for name in dict.fromkeys(names)]
    else:
        chosen = _of_kinds(graph, kinds)
    ends = _protected(graph, keep_first, keep_last)
    numbers = None if layers is None else _numbered(graph, layers)
    left = ignored(graph.traced, ignore, only)
    reasons = {}
    for group in chosen:
        if group.layer in ends:
            reasons[group.name] = ends[group.layer]
        elif numbers is not None and (group.layer is None or group.layer[1] not in numbers):
            reasons[group.name] = f"layers={layers}"
        elif held := next((left[s.tensor] for s in group.sites if s.tensor in left), None):
            reasons[group.name] = held
    open_groups = [group for group in chosen if group.name not in reasons]
    if not open_groups:
        why = ", ".join(dict.fromkeys(reasons.values()))
        raise SelectionError(
            f"no group is left to prune: every one chosen is protected ({why})"
            if chosen
            else "no group was chosen"
        )
    return open_groups, reasons


def candidate(
    group: Group,
    scores: Mapping[str, Any],
    min_kept: int = 1,
    multiple: int = 1,
    gone: Sequence[int] = (),
    numbers: Collection[int] | None = None,
) -> Candidate:
    """A group with its units in the order in which they go.

    Args:
        group: the group.
        scores: group name to scores of shape (size,).
        min_kept: units that stay at least.
        multiple: if it loses units, the number that stays is a multiple of this.
        gone: units that are lost already; their scores do not matter.
        numbers: if it loses units, the number that stays is one of these; None for any.

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
    stay = np.setdiff1d(np.arange(group.size), gone)
    if not np.isfinite(values[stay]).all():
        raise SelectionError(f"the scores of group {group.name!r} are not finite")
    stay = stay[np.argsort(values[stay], kind="stable")]
    return replace(
        settled(group, gone),
        levels=levels_of(group, len(gone), min_kept, multiple, numbers),
        order=np.concatenate([np.asarray(gone, dtype=np.int64), stay]),
        scores=values[stay],
    )


def settled(group: Group, gone: Sequence[int] = ()) -> Candidate:
    """A group that keeps all units but those lost already; it needs no scores.

    Args:
        group: the group.
        gone: units that are lost already.
    """
    stay = np.setdiff1d(np.arange(group.size), gone)
    return Candidate(
        name=group.name,
        kind=group.kind,
        dim=find(group.dim),
        size=group.size,
        span=_span(group),
        levels=np.array([len(gone)], dtype=np.int64),
        order=np.concatenate([np.asarray(gone, dtype=np.int64), stay]),
        scores=np.zeros(len(stay)),
    )


def share(size: int, span: int, ratio: float) -> int:
    """How many units go when this fraction of a group does, as LLM-Pruner counts.

    Its code (``prune_local``) removes ``n - int(n * (1 - ratio))`` of the ``n`` channels of a
    group, and the heads that lie wholly in that many: neurons are rounded up and heads down.

    Args:
        size: number of units.
        span: channels of each.
        ratio: the fraction, in [0, 1).
    """
    channels = size * span
    return (channels - int(channels * (1 - ratio) + EXACT)) // span


def at_step(group: Candidate, step: int) -> Candidate:
    """The same group, to stay as it is at a step."""
    return replace(group, levels=group.levels[step : step + 1])


def kept_counts(groups: Sequence[Candidate], steps: Sequence[int]) -> dict[Dim, int]:
    """The numbers of kept units by dim, each group at its step."""
    return {g.dim: g.size - g.lost(step) for g, step in zip(groups, steps, strict=True)}


def _span(group: Group) -> int:
    fewer = {find(group.dim): group.size - 1}
    layouts = [site.layout for site in group.sites if site.parameter]
    return min((layout.size - kept_size(layout, fewer) for layout in layouts), default=1)


def levels_of(
    group: Group,
    gone: int,
    min_kept: int = 1,
    multiple: int = 1,
    numbers: Collection[int] | None = None,
) -> NDArray[np.int64]:
    """How many units a group may have lost, ascending; the arguments are those of a candidate."""
    size, least = group.size, max(min_kept, group.least)
    kept = np.arange((size - 1) // multiple * multiple, 0, -multiple, dtype=np.int64)
    kept = kept if numbers is None else kept[np.isin(kept, list(numbers))]
    lost = size - kept[(kept >= least) & (kept <= size - gone)]
    # All units may stay, however many they are. A group that is short already of a number it may
    # have moves to the next one, if there is one.
    return lost if gone and lost.size else np.concatenate([[gone], lost])


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
    raise SelectionError(message + why_frozen(graph.frozen, kinds))


def why_frozen(frozen: Iterable[Group], first: Collection[str] = ()) -> str:
    """A line for each reason why groups are frozen, with how many there are.

    Args:
        frozen: the groups.
        first: kinds whose reasons come first; then what froze most.
    """
    reasons: dict[str, list[Group]] = defaultdict(list)
    for group in frozen:
        reasons[group.reason or "frozen"].append(group)

    def order(item: tuple[str, list[Group]]) -> tuple[bool, int]:
        return not any(group.kind in first for group in item[1]), -len(item[1])

    text = ""
    for reason, groups in sorted(reasons.items(), key=order):
        leading = next((g for g in groups if g.kind in first), groups[0])
        others = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
        text += f"\n  {leading.name}{others}: {reason}"
    return f"; frozen are:{text}" if text else ""


def _numbered(graph: DependencyGraph, layers: str) -> set[int]:
    """The numbers of layers that are meant.

    Raises:
        SelectionError: the model has no layer of such a number.
    """
    numbers = set(layer_numbers(layers))
    there = {g.layer[1] for g in (*graph.groups, *graph.frozen) if g.layer is not None}
    # Where blocks went already, it is they that may be missing.
    if graph.traced.original is None and (missing := sorted(numbers - there)):
        has = f"layers {min(there)} to {max(there)}" if there else "no numbered layers"
        raise SelectionError(
            f"layers={layers}: there is no layer {missing[0]}, the model has {has}"
        )
    return numbers


def _protected(graph: DependencyGraph, first: int, last: int) -> dict[tuple[str, int] | None, str]:
    """The protected layers, each with the option that protects it."""
    stacks: dict[str, set[int]] = defaultdict(set)
    for group in (*graph.groups, *graph.frozen):
        if group.layer is not None:
            stacks[group.layer[0]].add(group.layer[1])
    protected: dict[tuple[str, int] | None, str] = {}
    for prefix, layers in stacks.items():
        ordered = sorted(layers)
        for layer in ordered[-last:] if last else ():
            protected[prefix, layer] = f"keep_last={last}"
        for layer in ordered[:first]:
            protected[prefix, layer] = f"keep_first={first}"
    return protected
