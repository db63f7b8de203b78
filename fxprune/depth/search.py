"""Which units go: scored once, or again after every removal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fxprune.branches import Unit, bypass
from fxprune.depth.criteria import PPL, DepthCriterion
from fxprune.depth.score import score_units
from fxprune.errors import DepthError
from fxprune.importance.criterion import Criterion
from fxprune.importance.scores import Scores
from fxprune.progress import step
from fxprune.select.blocks import candidates, choose_units, enough, stacks
from fxprune.select.depth import FIXED, Depth
from fxprune.trace.traced import Traced


@dataclass(frozen=True)
class Removal:
    """What :func:`choose_depth` chose.

    Attributes:
        removed: names of the units that go, in the order in which they went.
        scores: scores of the units in the whole model; empty for schedules without.
        at_removal: of each removed unit, its score when it went; empty likewise.
        criterion: the criterion and schedule, as text.
    """

    removed: tuple[str, ...]
    scores: Scores
    at_removal: tuple[float, ...]
    criterion: str


def choose_depth(
    traced: Traced,
    depth: Depth,
    criterion: DepthCriterion | Criterion | None = None,
    calibration: Any = None,
    *,
    progress: bool = False,
    **options: Any,
) -> Removal:
    """Choose the blocks or branches to remove.

    Args:
        traced: the model with its weights.
        depth: how many, of which kind, and by which schedule.
        criterion: what to score with; :class:`PPL` if left out.
        calibration: data as for :func:`fxprune.estimate`, for every round the same.
        progress: show the stages.
        options: ``loss_fn`` and ``batch_size`` of :func:`score_units`.

    Returns:
        The choice; ``bypass(traced, choice.removed)`` is the model without them.

    Raises:
        DepthError: too few units may go.
        CriterionError: see :func:`score_units`.
        CalibrationError: likewise.
    """
    free = candidates(traced, depth)
    criterion = PPL() if criterion is None else criterion
    if isinstance(calibration, Iterator):
        calibration = list(calibration)
    if depth.schedule in FIXED:
        return Removal(choose_units(traced, {}, depth), Scores(), (), depth.schedule)
    options["progress"] = progress
    label = f"{criterion!r}, {depth.schedule}"
    if depth.schedule == "run":
        return _run(traced, free, depth, criterion, calibration, label, options)
    scores = score_units(traced, criterion, calibration, units=free, **options)
    if depth.schedule == "one-shot":
        removed = choose_units(traced, scores, depth)
        return Removal(removed, scores, tuple(float(scores[n]) for n in removed), label)
    removed = ()
    found, at_removal = scores, []
    while not enough(traced, removed, depth):
        if removed:
            shorter = bypass(traced, removed)
            left = candidates(shorter, replace(depth, remove=None, ratio=0.0))
            with step(f"{len(removed)} removed, scoring what is left", progress):
                found = score_units(shorter, criterion, calibration, units=left, **options)
        lowest = min(found, key=lambda name: float(found[name]))
        removed = (*removed, lowest)
        at_removal.append(float(found[lowest]))
    return Removal(removed, scores, tuple(at_removal), label)


def _run(
    traced: Traced,
    free: Sequence[Unit],
    depth: Depth,
    criterion: DepthCriterion | Criterion,
    calibration: Any,
    label: str,
    options: dict[str, Any],
) -> Removal:
    """The run of neighbouring blocks whose removal as a whole scores lowest."""
    if enough(traced, (), depth):
        return Removal((), Scores(), (), label)
    runs = {_name(blocks): blocks for blocks in _runs(traced, free, depth)}
    if not runs:
        much = f"{depth.remove} blocks" if depth.ratio is None else f"ratio={depth.ratio}"
        raise DepthError(f"no run of neighbouring blocks that may go makes {much}")
    units = [_whole(blocks) for blocks in runs.values()]
    scores = score_units(traced, criterion, calibration, units=units, **options)
    lowest = min(scores, key=lambda name: float(scores[name]))
    removed = _names(runs[lowest])
    return Removal(removed, scores, (float(scores[lowest]),) * len(removed), label)


def _runs(traced: Traced, free: Sequence[Unit], depth: Depth) -> Iterator[list[Unit]]:
    """From every block the shortest run of neighbours that is enough."""
    for stack in stacks(free).values():
        stop = 0
        for start in range(len(stack)):
            while stop <= len(stack) and not enough(traced, _names(stack[start:stop]), depth):
                stop += 1
            blocks = stack[start:stop]
            if stop <= len(stack) and all(a.exit is b.entry for a, b in pairwise(blocks)):
                yield blocks


def _names(units: Sequence[Unit]) -> tuple[str, ...]:
    return tuple(unit.name for unit in units)


def _name(blocks: Sequence[Unit]) -> str:
    first, last = blocks[0].name, blocks[-1].name
    return first if first == last else f"{first} to {last}"


def _whole(blocks: Sequence[Unit]) -> Unit:
    """A run of blocks as one unit."""
    return replace(
        blocks[0],
        name=_name(blocks),
        exit=blocks[-1].exit,
        inside=frozenset().union(*(b.inside for b in blocks)),
        parameters=tuple(p for b in blocks for p in b.parameters),
        branches=tuple(n for b in blocks for n in b.branches),
    )
