"""Selection in depth: which blocks or branches go, by their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.branches import Unit, bypass, find_branches
from fxprune.errors import CriterionError, DepthError
from fxprune.groups.kinds import layer_of
from fxprune.select.depth import FIXED, Depth
from fxprune.select.options import layer_numbers
from fxprune.trace.ignored import ignored
from fxprune.trace.traced import Traced


def candidates(traced: Traced, depth: Depth) -> tuple[Unit, ...]:
    """The units that may go, in graph order: not the protected ones.

    Raises:
        DepthError: there are none, or too few; the message says how many or how much may go.
    """
    found = find_branches(traced)
    units = found.of(depth.unit)
    if not units:
        reasons = [f"{name}: {why}" for name, why in found.refused.items()]
        because = f" ({'; '.join(reasons[:3])})" if reasons else ""
        what = f"no {depth.unit} that can be removed"
        raise DepthError(f"{found.module} has {what}{because}")
    free = units if depth.schedule in FIXED else _unprotected(traced, units, depth)
    left = ignored(traced, depth.ignore, depth.only)
    if depth.layers is not None:
        numbers = set(layer_numbers(depth.layers))
        places = {unit: layer_of(f"{unit.place.partition('@')[0]}.") for unit in free}
        free = tuple(unit for unit, at in places.items() if at is not None and at[1] in numbers)
    free = tuple(unit for unit in free if left.keys().isdisjoint(unit.parameters))
    if depth.remove is not None and depth.remove > len(free):
        kept = len(units) - len(free)
        protected = f", {kept} more are protected" if kept else ""
        raise DepthError(
            f"{depth.remove} of {found.module}'s {len(units)} removable units ({depth.unit}) "
            f"cannot go: {len(free)} may{protected}"
        )
    every = [unit.name for unit in free]
    if depth.ratio and not enough(traced, every, depth):
        before, least = parameters(traced), parameters(bypass(traced, every))
        raise DepthError(
            f"ratio={depth.ratio} cannot be met by removing units ({depth.unit}): without all that "
            f"may go {least:,} of {before:,} parameters stay, a ratio of {1 - least / before:.4f}"
        )
    return free


def enough(traced: Traced, names: Sequence[str], depth: Depth) -> bool:
    """Whether so many units have gone as were to go."""
    if depth.remove is not None:
        return len(names) >= depth.remove
    assert depth.ratio is not None
    before, after = parameters(traced), parameters(bypass(traced, names))
    return after <= math.floor((1 - float(depth.ratio)) * before)


def parameters(traced: Traced) -> int:
    """Parameters of the whole model, without those of units that were bypassed."""
    unique = {traced.canonical(n): p for n, p in traced.module.named_parameters()}
    return sum(p.numel() for name, p in unique.items() if name not in traced.dropped)


def choose_units(traced: Traced, scores: Mapping[str, Any], depth: Depth) -> tuple[str, ...]:
    """The units that go, in the order in which they go.

    Args:
        traced: the whole model.
        scores: unit name to its score; not looked at by ``alternate`` and ``first``.
        depth: how many, of which kind, by which of the schedules without new scores.

    Raises:
        DepthError: too few units may go, or the schedule needs new scores.
        CriterionError: a unit has no score.
    """
    free = candidates(traced, depth)
    if depth.schedule == "alternate":
        return tuple(unit.name for stack in stacks(free).values() for unit in stack[1::2])
    if depth.schedule == "first":
        return taken(traced, [unit.name for unit in reversed(free)], depth)
    if depth.schedule != "one-shot":
        raise DepthError(f"{depth.schedule} scores units itself: call fxprune.choose_depth")
    missing = next((unit.name for unit in free if unit.name not in scores), None)
    if missing is not None:
        raise CriterionError(f"no score for {missing!r}: the scores are of other units")
    ranked = sorted(free, key=lambda unit: float(scores[unit.name]))
    return taken(traced, [unit.name for unit in ranked], depth)


def taken(traced: Traced, order: Sequence[str], depth: Depth) -> tuple[str, ...]:
    """As many of an order as are to go."""
    number = depth.remove or 0
    while depth.remove is None and not enough(traced, order[:number], depth):
        number += 1
    return tuple(order[:number])


def stacks(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units by the list of modules they lie in, such as ``model.layers``."""
    found: dict[str, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.place.rpartition(".")[0], []).append(unit)
    return found


def _unprotected(traced: Traced, units: Sequence[Unit], depth: Depth) -> tuple[Unit, ...]:
    # Layers of the whole model count, also where some went already.
    whole = find_branches(traced.original or traced)
    places: dict[str, list[str]] = {}
    for unit in whole.units.values():
        places.setdefault(unit.place.rpartition(".")[0], []).append(unit.place)
    protected: set[str] = set()
    for each in places.values():
        layers = list(dict.fromkeys(each))
        protected.update(layers[: depth.keep_first])
        protected.update(layers[len(layers) - depth.keep_last :] if depth.keep_last else ())
    return tuple(unit for unit in units if unit.place not in protected)
