"""Selection in depth: how many blocks or branches go, and which by their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fxprune.branches import Unit, bypass, find_branches
from fxprune.branches.unit import KINDS
from fxprune.errors import CriterionError, DepthError
from fxprune.select.budget import check_ratio
from fxprune.trace.traced import Traced

Schedule = Literal["one-shot", "greedy", "run", "alternate", "first"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
FIXED = ("alternate", "first")  # no scores are looked at


@dataclass(frozen=True)
class Depth:
    """What to remove of a model's depth.

    Attributes:
        remove: how many units go.
        ratio: instead, the fraction of the whole model's parameters that goes at least; units go
            until it is reached.
        unit: ``block``; ``attention`` or ``mlp`` alone; or ``branch``, either (BlockPruner).
        schedule: ``one-shot`` takes the lowest scores at once, ``greedy`` scores again after each
            removal (SLEB, arXiv 2402.09025; BlockPruner, 2406.10594), ``run`` takes one run of
            neighbouring blocks. Without scores: ``alternate`` takes every other block, the second
            first (DistilBERT), and ``first`` keeps the first blocks (LLM-Pruner's layer-wise mode).
        keep_first: layers at the start of every stack that stay ("+" of Shortened LLaMA, arXiv
            2402.02834, which keeps the first four and the last two).
        keep_last: likewise at the end. Neither counts for ``alternate`` and ``first``.

    Raises:
        DepthError: an option is out of its range, or they do not go together.
    """

    remove: int | None = None
    ratio: float | None = None
    unit: str = "block"
    schedule: Schedule = "one-shot"
    keep_first: int = 4
    keep_last: int = 2

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise DepthError(f"no schedule {self.schedule!r}: take {', '.join(SCHEDULES)}")
        counted = self.remove is not None, self.ratio is not None
        if self.schedule == "alternate":
            if any(counted):
                raise DepthError("alternate takes every other block: leave out remove and ratio")
        elif sum(counted) != 1:
            raise DepthError("say how much goes: either remove, a number of units, or ratio")
        if self.remove is not None and (type(self.remove) is not int or self.remove < 1):
            raise DepthError(f"remove={self.remove}: a whole number, at least 1")
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
        if self.keep_first < 0 or self.keep_last < 0:
            raise DepthError("keep_first and keep_last are at least 0")
        if self.unit not in (*KINDS, "branch"):
            raise DepthError(f"no unit {self.unit!r}: take {', '.join((*KINDS, 'branch'))}")
        if self.schedule in ("run", *FIXED) and self.unit != "block":
            raise DepthError(f"{self.schedule} takes blocks, not unit={self.unit!r}")


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
    return after <= math.floor((1 - depth.ratio) * before)


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
