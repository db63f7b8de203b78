"""Estimation: run criteria over a model and score every unit of every group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from fxprune.data import processes
from fxprune.data.calibrate import Calibration, batches, rows
from fxprune.data.graph_inputs import check_tokens
from fxprune.data.loader import Source
from fxprune.data.loss import GraphLoss
from fxprune.data.loss_function import LossFunction, check_loss
from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance import targets
from fxprune.importance.activations import Recorder
from fxprune.importance.collect import DATA, Vectors, differentiate, observe, score_weights
from fxprune.importance.combine import combine, scored
from fxprune.importance.criterion import Criterion, ElementCriterion, Needs
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.findings import Findings
from fxprune.importance.routing import Routing, observe_routing, routers
from fxprune.importance.scores import Scores
from fxprune.importance.stacked import ExpertRecorder, check_same
from fxprune.importance.streamed import score_in_pieces
from fxprune.importance.targets import Reader
from fxprune.trace.modes import quick_products

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

Readers = Mapping[str, tuple[Reader, ...]]


@overload
def estimate(
    model: nn.Module,
    graph: DependencyGraph,
    criterion: Criterion,
    calibration: Calibration | None = None,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    kinds: Collection[str] | None = None,
    groups: Sequence[Group] | None = None,
    progress: bool = False,
    stream: Source | None = None,
) -> Scores: ...


@overload
def estimate(
    model: nn.Module,
    graph: DependencyGraph,
    criterion: Sequence[Criterion],
    calibration: Calibration | None = None,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    kinds: Collection[str] | None = None,
    groups: Sequence[Group] | None = None,
    progress: bool = False,
    stream: Source | None = None,
) -> list[Scores]: ...


@quick_products()
def estimate(
    model: nn.Module,
    graph: DependencyGraph,
    criterion: Criterion | Sequence[Criterion],
    calibration: Calibration | None = None,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    kinds: Collection[str] | None = None,
    groups: Sequence[Group] | None = None,
    progress: bool = False,
    stream: Source | None = None,
) -> Scores | list[Scores]:
    """Score the units of every prunable group.

    Parameters are looked up on ``model`` by name, so it may be another instance than the traced
    one (which may be on ``meta``), in any floating dtype and on several devices. The model is left
    as it was found: gradients, ``requires_grad``, training mode and hooks.

    Several criteria share one pass over the calibration data. Without criteria that need gradients
    it is forward only. Else the data is one mean loss, each gradient is consumed and freed as it
    arrives, and only with more than one micro-batch do the gradients of the scored parameters
    exist at the same time. ``Taylor(order=2)`` runs sample by sample and keeps no gradient;
    ``Taylor(order="mixed")``, and order 1 along with either, keep sums in float32; ``OBS`` keeps
    the second moments of every consumer at the same time.

    Inputs of consumers are observed where the modules that own the weights are called; those of
    experts whose weights are stacked in the traced graph, which then runs too, and must have the
    model's weights. Where a batch has an ``attention_mask`` of shape (N, L), masked tokens of
    inputs of shape (N, L, C) or (N * L, C), and of experts, do not count.

    Args:
        model: the model with its weights.
        graph: its groups.
        criterion: what to score with, such as ``Taylor()``; or several.
        calibration: token ids (N, L), a mapping of keyword inputs, or an iterable of those; None
            for criteria that need no data.
        loss_fn: the loss of one batch, ``loss_fn(model, batch)``, with the batch as it was given;
            or of a prediction and a target, such as ``nn.CrossEntropyLoss()``, for batches
            ``(inputs, labels)``; by default the model's own.
        batch_size: sequences per forward pass; None takes the batches as they are. Where a
            criterion needs gradients of single samples it is 1.
        kinds: score only groups of these kinds; None scores all.
        groups: score only these; None scores all of the graph's. They may be others over the same
            dims, such as one with a single site, to score that member alone.
        progress: show a progress bar.
        stream: where to read weights from, such as ``fxprune.Weights("MODEL")``, for a model that
            does not fit into memory: the traced graph then runs piece by piece (see
            :func:`fxprune.branches.pieces.pieces_of`), all batches through each, with the weights
            of one piece at a time and those of the next being read. ``model`` may be on ``meta``.
            Scores are the same up to the rounding of floats. ``loss_fn(model, batch)`` may call
            the model once, with the inputs of the batch as they are.

    Returns:
        One float32 tensor of shape (size,) per group, on the CPU. For a sequence of criteria a
        list in its order.

    Raises:
        CriterionError: if a criterion needs calibration data and has none or cannot score a group,
            the model has no weights or is not the graph's, or scores are not finite (names the
            parameter).
        CalibrationError: if the data is empty, too short, or gives a loss that is not finite.
    """
    check_loss(loss_fn)
    single = isinstance(criterion, Criterion)
    criteria = _checked((criterion,) if isinstance(criterion, Criterion) else criterion)
    chosen = targets.chosen_groups(graph, groups, kinds)
    hungry = next((c for c in criteria if c.needs & DATA), None)
    if hungry is not None and chosen and calibration is None:
        raise CriterionError(f"{hungry!r} needs calibration data")
    options: dict[str, Any] = {"loss_fn": loss_fn, "batch_size": batch_size, "progress": progress}
    found = (
        _score_in_memory(model, graph, criteria, chosen, calibration, **options)
        if stream is None
        else score_in_pieces(graph, criteria, chosen, calibration, stream, **options)
    )
    results = [
        Scores(scores, repr(each), each.ranking)
        for each, scores in zip(criteria, found, strict=True)
    ]
    return results[0] if single else results


def _score_in_memory(
    model: nn.Module,
    graph: DependencyGraph,
    criteria: Sequence[Criterion],
    chosen: Sequence[Group],
    calibration: Calibration | None,
    *,
    loss_fn: LossFunction | None,
    batch_size: int | None,
    progress: bool,
) -> list[dict[str, Tensor]]:
    """For each criterion the scores by the name of the group, of a model with all its weights."""
    needs: Needs = frozenset().union(*(c.needs for c in criteria)) if chosen else frozenset()
    parameters = targets.parameters(model, graph, chosen) if needs else {}
    readers: Readers = {}
    for one in (c for c in criteria if "inputs" in needs & c.needs):
        readers = targets.readers(model, graph, chosen, one)
    every = [reader for each in readers.values() for reader in each]
    observed = {r.site.tensor: r.modules for r in every if not r.stacked}
    recorder = Recorder(observed)
    stacked = tuple(dict.fromkeys(use for reader in every for use in reader.stacked))
    experts = ExpertRecorder(traced=graph.traced, consumers=stacked)
    check_same(graph.traced, parameters, {use.site.tensor for use in stacked})
    moments = MomentRecorder(observed if "moments" in needs else {})
    vectors, among = Vectors(parameters, chosen), processes.current()
    elementary = [c for c in dict.fromkeys(criteria) if isinstance(c, ElementCriterion)]
    static = [c for c in elementary if not c.needs & DATA]
    graded = [c for c in elementary if c.needs & DATA]
    routing: dict[str, Routing] = {}
    if static:
        score_weights(vectors, static, progress)
    if needs & DATA and calibration is not None:
        data = batches(model, calibration, 1 if "squares" in needs else batch_size)
        check_tokens(graph.traced, data)
        data = data if among is None else [batch for _, batch in among.share(data)]
        if "routing" in needs:
            routing = observe_routing(graph, chosen, data, progress)
        with recorder.attached(), moments.attached():
            if graded or moments.modules:
                differentiate(
                    *(model, data, vectors, graded, recorder, moments, loss_fn),
                    among=among,
                    progress=progress,
                )
            elif observed:
                observe(model, data, recorder, loss_fn, progress=progress)
        if stacked:
            watch = partial(observe, recorder=Recorder())
            if "moments" in needs:
                none = Vectors({}, ())
                watch = partial(
                    differentiate,
                    vectors=none,
                    criteria=(),
                    recorder=Recorder(),
                    moments=experts,
                    among=among,
                )
            watch(
                experts.module(),
                data,
                loss_fn=loss_fn or GraphLoss(graph.traced),
                progress=progress,
            )
            recorder.samples = sum(map(rows, data))
        if among is not None:
            combine(among, recorder, moments, experts, routing)
    findings = Findings(parameters, readers, recorder, moments, vectors, routing, experts.experts)
    return scored(among, findings.score, criteria, chosen)


def check_scorable(
    model: nn.Module, graph: DependencyGraph, criterion: Criterion, groups: Sequence[Group]
) -> None:
    """Refuse a criterion that cannot score some groups, without any data.

    Raises:
        CriterionError: names the group and why.
    """
    if "inputs" in criterion.needs:
        targets.readers(model, graph, groups, criterion)
    if "routing" in criterion.needs:
        routers(graph, groups)


def _checked(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    listed = tuple(criteria) if isinstance(criteria, Iterable) else (criteria,)
    for criterion in listed:
        if not isinstance(criterion, Criterion):
            raise CriterionError(
                f"not a criterion: {criterion!r}; give an instance, such as Taylor()"
            )
    return listed
