"""Several prunings, one after the other, as one plan for the model that was pruned first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fxprune.axes.dims import Dim, Layout, Product, find, resolve
from fxprune.axes.positions import Units, index
from fxprune.branches.bypass import bypass, canonical
from fxprune.errors import FxpruneError, PlanError
from fxprune.groups.dependency import discover
from fxprune.groups.parameters import weight_of
from fxprune.plan import Plan
from fxprune.rewrite.history import History, Step, history_of
from fxprune.rewrite.planned import planned
from fxprune.trace.traced import Traced

_Stays = dict[str, list[Units]]


def compose(traced: Traced, plan: Plan) -> tuple[Traced, Plan]:
    """All prunings that led to a graph as one.

    What each of them left of every tensor's axes is followed back to the places in the original's
    tensors, and those are read as units of the original's groups. So the groups of a pruned graph
    may have other names or be finer. Weights are not needed.

    Args:
        traced: what was pruned last: any model, or a graph that :func:`fxprune.rewrite` made.
        plan: by which.

    Returns:
        The model that was pruned first, without weights, and the plan for it; the arguments if
        ``traced`` is not a graph that was pruned before.

    Raises:
        PlanError: the original's groups and branches cannot say what is left; says why.
    """
    known = history_of((traced.original or traced).module)
    if known is None:
        return traced, plan
    steps = (*known.steps, Step.of(*planned(traced, plan), plan))
    return known.original(), whole(replace(known, steps=steps))


def whole(history: History) -> Plan:
    """The plan for the model that was pruned first that does what all steps did.

    Raises:
        PlanError: the original's groups and branches cannot say what is left; says why.
    """
    original = history.original()
    try:
        return _composed(original, history.steps)
    except FxpruneError as error:
        raise PlanError(
            f"{len(history.steps)} prunings, one after the other, cannot be said as one plan for "
            f"{type(original.module).__name__}: {error}"
        ) from error


def together(
    earlier: Mapping[str, Sequence[int]], later: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Units of the original that stay after two prunings, by name of group.

    Args:
        earlier: those that stay of the original.
        later: of what was left, those that stay, by the same names.
    """
    both = {name: tuple(units) for name, units in earlier.items()}
    for name, units in later.items():
        before = both.get(name)
        both[name] = tuple(units) if before is None else tuple(before[unit] for unit in units)
    return both


def _composed(original: Traced, steps: tuple[Step, ...]) -> Plan:
    removed = canonical(original, [name for step in steps for name in step.plan.removed])
    graph = discover(bypass(original, removed))
    dropped = {original.canonical(name) for step in steps for name in step.dropped}
    if other := dropped ^ graph.traced.dropped:
        raise PlanError(f"there, {', '.join(removed)} would not remove {min(other)} as well")
    stays = _followed(original, steps)
    found: dict[Dim, Units] = {}
    for name, layouts in graph.layouts.items():
        for layout, places in zip(layouts, stays[name], strict=True):
            for dim, units in _units(layout, places):
                if not np.array_equal(found.setdefault(dim, units), units):
                    raise PlanError(f"axes of {name} and others that had to stay alike do not")
    biases = {_bias(original, name) for step in steps for name in step.plan.biases}
    plan = Plan.of(
        graph,
        {
            group.name: found[dim].tolist()
            for group in (*graph.groups, *graph.frozen)
            if len(found.get(dim := find(group.dim), ())) not in (0, group.size)
        },
        criterion=_joined(step.plan.criterion for step in steps),
        biases=[name for name in biases if weight_of(name) in graph.layouts],
    )
    kept = plan.kept_units(graph)
    for name, layouts in graph.layouts.items():
        for axis, (layout, places) in enumerate(zip(layouts, stays[name], strict=True)):
            if not np.array_equal(index(layout, kept), places):
                raise PlanError(f"no units of its groups are what is left of {name}[{axis}]")
    return plan


def _followed(original: Traced, steps: tuple[Step, ...]) -> _Stays:
    """Of every axis of the original's tensors the places that stay in the end."""
    stays = {
        name: [np.arange(size, dtype=np.int64) for size in tensor.shape]
        for name, tensor in original.tensors.items()
    }
    added: set[str] = set()
    for step in steps:
        for there, shape in step.shapes.items():
            name = original.canonical(there)
            if name not in stays:
                if there in step.parameters and there not in added:
                    raise PlanError(f"the parameter {there!r} was added after the first pruning")
                continue
            if (now := tuple(map(len, stays[name]))) != shape:
                raise PlanError(f"{there!r} was changed between two prunings, {now} to {shape}")
            for axis in range(len(shape)):
                left = step.stays.get((there, axis))
                if left is not None:
                    stays[name][axis] = stays[name][axis][left]
        added.update(step.plan.biases)
    return stays


def _units(layout: Layout, places: Units) -> Iterable[tuple[Dim, Units]]:
    """The units of every dim that places on an axis hold, ascending."""
    layout = resolve(layout)
    if isinstance(layout, Dim):
        yield layout, places
    elif isinstance(layout, Product):
        inner = layout.size
        for part in layout.parts:
            inner //= part.size
            yield from _units(part, np.unique(places // inner % part.size))
    else:
        start = 0
        for part in layout.parts:
            inside = places[(places >= start) & (places < start + part.size)]
            yield from _units(part, inside - start)
            start += part.size


def _bias(original: Traced, name: str) -> str:
    """The name of a bias beside the canonical name of its weight."""
    owner = original.canonical(weight_of(name)).rpartition(".")[0]
    return f"{owner}.bias" if owner else name


def _joined(criteria: Iterable[str | None]) -> str | None:
    """What the steps were scored with, each once."""
    return ", ".join(dict.fromkeys(c for c in criteria if c is not None)) or None
