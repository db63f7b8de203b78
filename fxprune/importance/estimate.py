"""Estimation: run a criterion over a model and score every unit of every group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxprune.axes.dims import find
from fxprune.errors import CriterionError
from fxprune.importance.aggregate import fold
from fxprune.importance.calibrate import Calibration, batches
from fxprune.importance.criterion import Criterion, ElementCriterion
from fxprune.importance.gradients import stream_gradients
from fxprune.importance.loss import LossFunction
from fxprune.importance.scores import Scores
from fxprune.progress import track

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group

# Sums of element scores by (canonical parameter name, axis): all that is kept of a gradient.
Vectors = dict[tuple[str, int], Tensor]


def estimate(
    model: nn.Module,
    graph: DependencyGraph,
    criterion: Criterion,
    calibration: Calibration | None = None,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    kinds: Collection[str] | None = None,
    progress: bool = False,
) -> Scores:
    """Score the units of every prunable group.

    Parameters are looked up on ``model`` by name, so it may be another instance than the traced
    one (which may be on ``meta``), in any floating dtype and on several devices. The model is left
    as it was found: gradients, ``requires_grad``, training mode and hooks.

    For criteria with gradients the data is one mean loss. Each gradient is consumed and freed as
    it arrives; only with more than one micro-batch do the gradients of the scored parameters exist
    at the same time.

    Args:
        model: the model with its weights.
        graph: its groups.
        criterion: what to score with, such as ``Taylor()``.
        calibration: token ids (N, L), a mapping of keyword inputs, or an iterable of those; None
            for criteria that need no data.
        loss_fn: the loss of one batch, ``loss_fn(model, batch)``; by default the model's own.
        batch_size: sequences per forward pass; None takes the batches as they are.
        kinds: score only groups of these kinds; None scores all.
        progress: show a progress bar.

    Returns:
        One float32 tensor of shape (size,) per group, on the CPU.

    Raises:
        CriterionError: if the criterion needs calibration data and has none, the model has no
            weights or is not the graph's, or scores are not finite (names the parameter).
        CalibrationError: if the data is empty, too short, or gives a loss that is not finite.
    """
    if not isinstance(criterion, Criterion):
        raise CriterionError(f"not a criterion: {criterion!r}; give an instance, such as Taylor()")
    groups = [group for group in graph.groups if kinds is None or group.kind in kinds]
    vectors: Vectors = {}
    if isinstance(criterion, ElementCriterion) and groups:
        parameters = _parameters(model, graph, groups)
        axes = _axes(groups)
        store = partial(_store, criterion, axes, vectors)
        if criterion.needs_gradients:
            if calibration is None:
                raise CriterionError(f"{criterion!r} needs calibration data")
            data = batches(model, calibration, batch_size)
            stream_gradients(model, parameters, data, store, loss_fn=loss_fn, progress=progress)
        else:
            _each_weight(parameters, store, progress)
    scores = {group.name: _unit_scores(criterion, group, vectors) for group in groups}
    return Scores(scores, repr(criterion))


def _parameters(
    model: nn.Module, graph: DependencyGraph, groups: Iterable[Group]
) -> dict[str, nn.Parameter]:
    """The parameters at the groups' sites, by canonical name."""
    aliases = graph.traced.aliases
    found = {aliases.get(n, n): p for n, p in model.named_parameters(remove_duplicate=False)}
    wanted = {}
    for site in (site for group in groups for site in group.sites if site.parameter):
        parameter = found.get(site.tensor)
        if parameter is None:
            raise CriterionError(f"the model has no parameter {site.tensor!r}: not the graph's?")
        if parameter.is_meta:
            raise CriterionError(f"{site.tensor!r} is on meta: scores need the weights")
        if not parameter.is_floating_point():
            raise CriterionError(f"{site.tensor!r} is {parameter.dtype}: scores need floats")
        if parameter.ndim <= site.axis or parameter.shape[site.axis] != site.layout.size:
            raise CriterionError(
                f"{site.tensor!r} has shape {tuple(parameter.shape)}, and the graph has "
                f"{site.layout.size} on axis {site.axis}: not the graph's model"
            )
        wanted[site.tensor] = parameter
    return wanted


def _axes(groups: Iterable[Group]) -> dict[str, set[int]]:
    axes: dict[str, set[int]] = defaultdict(set)
    for site in (site for group in groups for site in group.sites):
        axes[site.tensor].add(site.axis)
    return axes


@torch.no_grad()
def _store(
    criterion: ElementCriterion,
    axes: dict[str, set[int]],
    vectors: Vectors,
    name: str,
    weight: Tensor,
    gradient: Tensor | None,
) -> None:
    elements = criterion.elements(weight.detach(), gradient)
    for axis in axes[name]:
        # Cloned where no axis is summed away, or the element scores would stay alive.
        vector = criterion.collapse(elements, axis)
        vectors[name, axis] = vector.clone() if vector is elements else vector


def _each_weight(
    parameters: dict[str, nn.Parameter],
    store: Callable[[str, Tensor, Tensor | None], None],
    progress: bool,
) -> None:
    for name in track(list(parameters), "Scoring weights", progress):
        store(name, parameters[name], None)


def _unit_scores(criterion: Criterion, group: Group, vectors: Vectors) -> Tensor:
    dim = find(group.dim)
    members = []
    for site in group.sites:
        vector = vectors.get((site.tensor, site.axis))
        if vector is None or not site.parameter:
            continue
        member = fold(vector.cpu(), site.layout, dim)
        if not member.isfinite().all():
            raise CriterionError(
                f"{criterion!r}: the scores of group {group.name!r} from the parameter "
                f"{site.tensor!r} are not finite"
            )
        members.append(member)
    if not members and isinstance(criterion, ElementCriterion):
        return torch.zeros(group.size)  # only buffers hold its units, and those are not scored
    scores = criterion.unit_scores(group, members)
    if scores.shape != (group.size,) or not scores.isfinite().all():
        raise CriterionError(f"{criterion!r}: bad or non-finite scores for group {group.name!r}")
    return scores.float()
