"""One pass over the calibration data for everything that any criterion asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.data.calibrate import Batch
from fxprune.data.loss import batch_loss, predictions, run_forward
from fxprune.data.loss_function import LossFunction
from fxprune.data.processes import Processes
from fxprune.groups.group import Group
from fxprune.importance.activations import Recorder
from fxprune.importance.criterion import Criterion, ElementCriterion, Needs
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.evidence import Gradients
from fxprune.importance.gradients import stream_mean, stream_samples
from fxprune.progress import track
from fxprune.trace.modes import evaluation

DERIVATIVES: Needs = frozenset({"gradient", "squares"})
DATA: Needs = DERIVATIVES | {"inputs", "moments", "routing"}


class Vectors(dict[tuple[Criterion, str, int], Tensor]):
    """Sums of element scores by (criterion, parameter, axis): all that is kept of a gradient."""

    def __init__(self, parameters: Mapping[str, Any], groups: Iterable[Group]) -> None:
        super().__init__()
        self.parameters = parameters
        self.axes: dict[str, set[int]] = defaultdict(set)
        for site in (site for group in groups for site in group.sites if site.parameter):
            self.axes[site.tensor].add(site.axis)

    @torch.no_grad()
    def add(self, criteria: Sequence[ElementCriterion], name: str, gradients: Gradients) -> None:
        """Score one parameter; what an earlier call found is added to."""
        for criterion in criteria:
            elements = criterion.elements(self.parameters[name].detach(), gradients)
            for axis in self.axes[name]:
                # Cloned where no axis is summed away, or the element scores would stay alive.
                vector = criterion.collapse(elements, axis)
                vector = vector.clone() if vector is elements else vector
                known = self.get((criterion, name, axis))
                self[criterion, name, axis] = vector if known is None else known + vector


def score_weights(
    vectors: Vectors, criteria: Sequence[ElementCriterion], progress: bool = False
) -> None:
    """Run the criteria that need the weights alone."""
    for name in track(list(vectors.parameters), "Scoring weights", progress):
        vectors.add(criteria, name, Gradients())


def observe(
    model: nn.Module,
    data: Sequence[Batch],
    recorder: Recorder,
    loss_fn: LossFunction | None = None,
    *,
    progress: bool = False,
) -> None:
    """Run the model forward for the recorder alone; dropout is off, no gradients."""
    short = _before_the_head(model, recorder)
    with evaluation(model), torch.no_grad():
        for batch in track(data, "Calibrating", progress):
            with recorder.recording(batch):
                run_forward(model, batch, loss_fn, last_logits=short)


def _before_the_head(model: nn.Module, recorder: Recorder) -> bool:
    """Whether all that is recorded lies inside the base model of a transformers model."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or base is model:
        return False
    inside = set(base.modules())
    return all(module in inside for owners in recorder.modules.values() for module in owners)


def differentiate(
    model: nn.Module,
    data: Sequence[Batch],
    vectors: Vectors,
    criteria: Sequence[ElementCriterion],
    recorder: Recorder,
    moments: MomentRecorder,
    loss_fn: LossFunction | None = None,
    *,
    among: Processes | None = None,
    progress: bool = False,
) -> None:
    """Run the criteria that need gradients, and the recorders along with them.

    Args:
        model: the model; left as it was found.
        data: micro-batches; single samples if a criterion needs ``squares``.
        vectors: where the scores go.
        criteria: those with gradients.
        recorder: records the forward passes.
        moments: records the forward and backward passes.
        loss_fn: the user's own loss of a batch.
        among: processes that have the other parts of the data.
        progress: show a progress bar.

    Raises:
        CalibrationError: as :func:`stream_mean` does; if a loss is not finite, or no label is left.
    """
    counts = predictions(model, list(data), loss_fn, among)
    of_all = [(sum(counts), sum(map(bool, counts)))]
    of_all = of_all if among is None else among.gather(of_all[0])
    total, samples = (sum(each) for each in zip(*of_all, strict=True))
    summed = None if among is None else among.total
    # Batches that weigh nothing (all labels ignored) have a loss of 0/0: no gradient of those.
    pairs = [(batch, count / total) for batch, count in zip(data, counts, strict=True) if count]
    rest = [batch for batch, count in zip(data, counts, strict=True) if not count]
    linear = [c for c in criteria if c.needs & DERIVATIVES == {"squares"}]
    others = [c for c in criteria if c not in linear]
    sums = frozenset().union(*(c.needs & DERIVATIVES for c in others))
    by_sample = bool(linear) or "squares" in sums
    factors = {
        id(batch): float(count if by_sample else total)
        for batch, count in zip(data, counts, strict=True)
    }

    def loss(batch: Batch) -> Tensor:
        with recorder.recording(batch), moments.recording(batch, factors[id(batch)]):
            return batch_loss(model, batch, loss_fn)

    consume = partial(vectors.add, others)
    if by_sample:
        each = partial(vectors.add, linear) if linear else None
        stream_samples(
            model,
            vectors.parameters,
            pairs,
            loss,
            each=each,
            whole=consume if others else None,
            sums=sums,
            count=samples,
            total=summed,
            progress=progress,
        )
        if among is not None:
            for key in [key for key in vectors if key[0] in linear]:
                vectors[key] = among.total(vectors[key])
    else:
        wanted = vectors.parameters if criteria else {}
        stream_mean(model, wanted, pairs, loss, consume, total=summed, progress=progress)
    if rest and recorder.modules:
        observe(model, rest, recorder, loss_fn)
