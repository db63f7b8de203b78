"""Scores of residual branches and blocks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.axes.dims import Dim
from fxprune.branches import Unit, find_branches
from fxprune.data.calibrate import Batch, Calibration, batches
from fxprune.data.graph_inputs import graph_inputs, masks
from fxprune.data.loader import Source
from fxprune.data.loss import GraphLoss, output_loss
from fxprune.data.loss_function import LossFunction
from fxprune.depth.criteria import PPL, DepthCriterion, StreamCriterion
from fxprune.depth.distances import Sums, by_exit, distances_in_pieces
from fxprune.errors import CalibrationError, CriterionError
from fxprune.groups.dependency import discover
from fxprune.groups.group import Group, Site
from fxprune.importance.criterion import Criterion, ElementCriterion
from fxprune.importance.estimate import estimate
from fxprune.importance.random_scores import Random
from fxprune.importance.scores import Scores
from fxprune.progress import track, track_some
from fxprune.trace.branching import BranchingRun
from fxprune.trace.modes import evaluation, quick_products
from fxprune.trace.traced import Traced


@quick_products()
def score_units(
    traced: Traced,
    criterion: DepthCriterion | Criterion,
    calibration: Calibration | None = None,
    *,
    units: str | Sequence[Unit] = "block",
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    stream: Source | None = None,
) -> Scores:
    """Score residual branches or blocks, each as if it alone were removed.

    * :class:`PPL` runs the graph once per batch and, at every unit, on to the end without it: what
      lies before a unit is computed once for all, so that a scan costs about half of a forward pass
      per unit. Nothing is copied or rebuilt.
    * :class:`BlockInfluence` and :class:`AngularDistance` cost one forward pass.
    * Criteria of weights (``Magnitude``, ``Taylor``): the sum of their element scores over all
      parameters that only the unit reads. As published (Shortened LLaMA, arXiv 2402.02834),
      ``Magnitude(p=1)`` is not divided by a size, and ``Taylor()`` sums ``w g`` over batches with
      its sign and takes the absolute value once.

    Args:
        traced: the model with its weights; of :func:`fxprune.bypass`, to score what is left.
        criterion: what to score with.
        calibration: data as for :func:`fxprune.estimate`.
        units: a kind of :meth:`Branches.of`, or the units themselves.
        loss_fn: for criteria with gradients, the loss of one batch.
        batch_size: sequences per forward pass.
        progress: show a progress bar.
        stream: where to read weights from, see :func:`fxprune.estimate`; not for ``PPL``.

    Returns:
        Unit name to a float32 tensor of shape (1,); low ones are removed first.

    Raises:
        DepthError: there is no such kind.
        CriterionError: the criterion scores no units, needs data and has none, or its scores are
            not finite.
        CalibrationError: the data does not fit the model or gives a loss that is not finite.
    """
    chosen = find_branches(traced).of(units) if isinstance(units, str) else tuple(units)
    found: dict[str, float]
    if isinstance(criterion, Random):
        generator = torch.Generator().manual_seed(criterion.seed)
        drawn = torch.rand(len(chosen), generator=generator).tolist()
        found = {unit.name: value for unit, value in zip(chosen, drawn, strict=True)}
    elif isinstance(criterion, ElementCriterion):
        options: dict[str, Any] = {"loss_fn": loss_fn, "batch_size": batch_size, "stream": stream}
        found = _of_weights(traced, criterion, calibration, chosen, progress, **options)
    elif isinstance(criterion, PPL | StreamCriterion):
        if calibration is None:
            raise CriterionError(f"{criterion!r} needs calibration data")
        if stream is not None:
            if isinstance(criterion, PPL):
                raise CriterionError(
                    f"PPL would sweep over all weights {len(chosen)} times: give BlockInfluence() "
                    "or AngularDistance(), which take one sweep"
                )
            found = distances_in_pieces(
                traced, criterion, calibration, chosen, stream, batch_size, progress
            )
            return _scores(found, criterion)
        _check_weights(traced)
        data = batches(traced.module, calibration, batch_size)
        scan = _perplexities if isinstance(criterion, PPL) else _distances
        with evaluation(traced.graph_module), torch.no_grad():
            found = scan(traced, criterion, data, chosen, progress)
    else:
        raise CriterionError(f"{criterion!r} scores units of groups, and no blocks or branches")
    return _scores(found, criterion)


def _scores(found: Mapping[str, float], criterion: DepthCriterion | Criterion) -> Scores:
    for name, value in found.items():
        if not math.isfinite(value):
            raise CriterionError(f"{criterion!r}: the score of {name} is {value}")
    return Scores(
        {name: torch.tensor([value], dtype=torch.float32) for name, value in found.items()},
        repr(criterion),
    )


def _check_weights(traced: Traced) -> None:
    for name, tensor in traced.tensors.items():
        if tensor.is_meta:
            raise CriterionError(f"{name!r} is on meta: scores need the weights")


def _of_weights(
    traced: Traced,
    criterion: ElementCriterion,
    calibration: Calibration | None,
    units: Sequence[Unit],
    progress: bool,
    **options: Any,
) -> dict[str, float]:
    """Sums of element scores, through one group of its own for every parameter."""
    names = dict.fromkeys(name for unit in units for name in unit.parameters)
    groups = [_alone(name, traced.tensors[name]) for name in names if traced.tensors[name].dim()]
    model = traced.module
    if traced.original is not None:
        model = traced.graph_module
        options["loss_fn"] = options["loss_fn"] or GraphLoss(traced)
    scores = estimate(
        model, discover(traced), criterion, calibration, groups=groups, progress=progress, **options
    )
    sums = {name: float(score.double().sum()) for name, score in scores.items()}
    return {unit.name: sum(sums.get(name, 0.0) for name in unit.parameters) for unit in units}


def _alone(name: str, parameter: Tensor) -> Group:
    dim = Dim(parameter.shape[0])
    site = Site(name, 0, dim, parameter=True)
    return Group(name, "other", dim.size, (site,), dim, False, None, None)


def _perplexities(
    traced: Traced,
    criterion: DepthCriterion,
    data: Sequence[Batch],
    units: Sequence[Unit],
    progress: bool,
) -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    count = 0
    rounds = len(data) * len(units)
    steps = _bypassing(traced, data, units)
    for batch, unit, output in track_some(steps, rounds, f"scanning {len(units)} units", progress):
        total, labels = output_loss(traced.module, batch, output)
        loss = float(total)
        if not math.isfinite(loss):
            raise CalibrationError(f"the loss without {unit.name} is {loss}: it must be finite")
        totals[unit.name] += loss
        count += labels if unit is units[0] else 0
    if units and not count:
        raise CalibrationError("every label is ignored (-100): nothing to predict")
    return {unit.name: _exp(totals[unit.name] / count) for unit in units}


def _exp(value: float) -> float:
    return math.exp(value) if value < 80 else math.inf


def _bypassing(
    traced: Traced, data: Sequence[Batch], units: Sequence[Unit]
) -> Iterator[tuple[Batch, Unit, Any]]:
    """What the model gives for every batch without each of the units."""
    run = BranchingRun(traced.graph_module)
    at = by_exit(units)
    for batch in data:
        inputs = graph_inputs(traced, batch)
        for node, values, kept in run.stops(inputs, at, [unit.entry for unit in units]):
            for unit in at[node]:
                off = kept[unit.entry] if unit.kind == "block" else torch.zeros_like(values[node])
                yield batch, unit, run.finish(node, values, {node: off})


def _distances(
    traced: Traced,
    criterion: DepthCriterion,
    data: Sequence[Batch],
    units: Sequence[Unit],
    progress: bool,
) -> dict[str, float]:
    assert isinstance(criterion, StreamCriterion)
    sums = Sums(traced, criterion, units)
    run = BranchingRun(traced.graph_module)
    at = by_exit(units)
    before = [node for unit in units for node in (unit.entry, unit.skip)]
    for batch in track(data, "watching the residual stream", progress):
        inputs = graph_inputs(traced, batch)
        hidden = masks(traced, inputs)
        for node, values, kept in run.stops(inputs, at, before):
            for unit in at[node]:
                sums.add(unit, kept[unit.entry], kept[unit.skip], values[node], hidden)
    return sums.means()
