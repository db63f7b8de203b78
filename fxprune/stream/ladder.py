"""Costs of units measured in the network, a ladder of options for each group, beside predicted."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxprune.axes.dims import find
from fxprune.compensate import matrices
from fxprune.compensate.head import logits_node
from fxprune.compensate.solve import damped_solve
from fxprune.data.calibrate import Batch, Calibration, batches
from fxprune.data.graph_inputs import graph_inputs, masks, row_count
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer, consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance.scores import Scores
from fxprune.ops.resize import Resizer
from fxprune.progress import track
from fxprune.stream.stops import reasons_against
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.modes import evaluation

SHARES = (0.15, 0.3, 0.45, 0.6, 0.8)  # of a group's units that go, where it has many
DAMPING = 0.5  # as compensation has it


@dataclass(frozen=True)
class Rung:
    """One option of one group: its cheapest units removed, and the consumer refitted.

    Attributes:
        removed: how many units go.
        predicted: what the scores say that it costs.
        measured: the divergence from the dense model that it causes, in nats per token.
    """

    removed: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class Ladder:
    """What :func:`measure_ladder` found.

    Attributes:
        rungs: of each group that could be measured, by name, those with fewest units first.
        skipped: the other groups, with the reason.
        seconds: wall-clock time.
    """

    rungs: Mapping[str, tuple[Rung, ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def scores(self, graph: DependencyGraph, scores: Scores) -> Scores:
        """The scores, brought to what was measured.

        The units of a group keep their order. Those between two rungs share what lies between the
        costs of the two in the proportion of their predicted costs. A group that was not measured
        is multiplied by the middle ratio of its kind, if another of it was.
        """
        ratios: dict[str, list[float]] = {}
        for name, rungs in self.rungs.items():
            last = rungs[-1]
            if last.predicted > 0:
                ratios.setdefault(graph[name].kind, []).append(last.measured / last.predicted)
        found = {}
        for name, given in scores.items():
            if name in self.rungs:
                found[name] = _rescaled(given, self.rungs[name])
            else:
                found[name] = given * statistics.median(ratios.get(graph[name].kind, [1.0]))
        return Scores(found, criterion=f"measured({scores.criterion})", ranking=scores.ranking)

    def __str__(self) -> str:
        count = sum(map(len, self.rungs.values()))
        skipped = f", {len(self.skipped)} groups not measured" if self.skipped else ""
        groups = f"{len(self.rungs)} groups measured in {self.seconds:.0f} s"
        return f"{count} options of {groups}{skipped}"


def measured(
    graph: DependencyGraph,
    scores: Scores,
    calibration: Calibration,
    *,
    batch_size: int | None = 8,
    progress: bool = False,
) -> tuple[Ladder, Scores]:
    """Measure a ladder on a part of the calibration data, and bring the scores to it.

    The last of at least four batches of each length measures; the others are what consumers are
    refitted to.

    Args:
        graph: the groups of a model that was traced with its weights.
        scores: of the groups to measure.
        calibration: data as for :func:`fxprune.estimate`.
        batch_size: sequences per forward pass.
        progress: show a progress bar.

    Raises:
        CalibrationError: there is too little data; else see :func:`measure_ladder`.
    """
    alike: dict[tuple[int, ...], list[Batch]] = {}
    for batch in batches(graph.traced.module, calibration, batch_size):
        first = next(value for value in batch.values() if isinstance(value, Tensor))
        alike.setdefault(tuple(first.shape[1:]), []).append(batch)
    held = [each[-1] for each in alike.values() if len(each) >= 4]
    fit = [batch for each in alike.values() for batch in (each[:-1] if len(each) >= 4 else each)]
    if not held:
        raise CalibrationError(
            "too little calibration data to measure costs on a part of it: give at least four "
            "batches (of 8 sequences, if batch_size= is left out), or leave out search='measured'"
        )
    ladder = measure_ladder(graph, scores, fit, held, batch_size=batch_size, progress=progress)
    return ladder, ladder.scores(graph, scores)


def measure_ladder(
    graph: DependencyGraph,
    scores: Scores,
    calibration: Calibration,
    validation: Calibration,
    *,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Ladder:
    """Measure what it costs to remove more and more units of each group, all others being there.

    Predicted costs rank the units inside a group; between groups, kinds and layers they are off by
    factors. So for each group some numbers of units are tried in the otherwise dense model: the
    cheapest by their scores go, the product that reads them is refitted by least squares to what it
    gave (on the calibration data), and the Kullback-Leibler divergence of the logits from the dense
    model's is taken on the validation data. (As Puzzle, Bercovich et al., arXiv 2411.19146, scores
    its options.) What lies before a group is computed once for all its options.

    Args:
        graph: the groups of a model that was traced with its weights.
        scores: of the groups to measure.
        calibration: data to refit on, as for :func:`fxprune.estimate`.
        validation: other data to measure on.
        batch_size: sequences per forward pass.
        progress: show a progress bar.

    Raises:
        CalibrationError: the data does not fit the model, a value is not finite, or the model gives
            no logits.
    """
    started = time.perf_counter()
    traced = graph.traced
    end = logits_node(traced)
    if end is None:
        raise CalibrationError(
            f"{type(traced.module).__name__} gives no logits whose divergence could be measured"
        )
    stops: dict[fx.Node, tuple[Consumer, list[Group]]] = {}
    skipped = reasons_against(graph, [graph[name] for name in scores])
    for group in (graph[name] for name in scores if name not in skipped):
        consumer = consumers(graph, group)[0]
        if consumer.stack is not None:
            skipped[group.name] = "its units are in stacked weights"
        elif group.size > 1:
            stops.setdefault(consumer.node, (consumer, []))[1].append(group)
    order = [node for node in traced.graph_module.graph.nodes if node in stops]
    rungs: dict[str, tuple[Rung, ...]] = {}
    with evaluation(traced.graph_module), torch.no_grad():
        fit = _Run.of(graph, batches(traced.module, calibration, batch_size), order)
        held = _Run.of(graph, batches(traced.module, validation, batch_size), [*order, end])
        dense = [_log_softmax(held.run.ahead(n, end)) for n in range(len(held.masks))]
        for node in track(order, "measuring options", progress):
            consumer, groups = stops[node]
            moments = _moments(graph, fit, consumer)
            for _ in held.run.advance(node):
                pass
            for group in groups:
                removals = _removals(graph, group, consumer, scores[group.name])
                costs = _costs(graph, held, consumer, moments, dense, end, removals)
                rungs[group.name] = tuple(
                    Rung(count, float(scores[group.name].double().sort()[0][:count].sum()), cost)
                    for (count, _), cost in zip(removals, costs, strict=True)
                )
    return Ladder(rungs, skipped, time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class _Run:
    """A run of the dense model on some batches, and which tokens of them count."""

    run: Lockstep
    masks: list[Mapping[int, Tensor]]

    @classmethod
    def of(cls, graph: DependencyGraph, data: Sequence[Batch], ends: Sequence[fx.Node]) -> _Run:
        traced = graph.traced
        inputs = [graph_inputs(traced, batch) for batch in data]
        hidden = [masks(traced, values) for values in inputs]
        return cls(Lockstep(traced.graph_module, inputs, ends), list(hidden))


def _moments(graph: DependencyGraph, fit: _Run, consumer: Consumer) -> Tensor:
    """``X^T X`` of what enters a product, over all tokens that count, float64."""
    traced = graph.traced
    weight = traced.tensors[consumer.site.tensor]
    count = row_count(traced, consumer.source.meta["val"].shape[:-1])
    total: Tensor | None = None
    for values, hidden in zip(fit.run.advance(consumer.node), fit.masks, strict=True):
        rows = matrices.input_rows(consumer, values[consumer.source], weight)
        mask = None if matrices.convolves(consumer) else hidden.get(count)
        rows = rows if mask is None else rows[mask]
        found = (rows.T @ rows).double()
        total = found if total is None else total.add_(found)
    assert total is not None
    if not total.isfinite().all():
        raise CalibrationError(f"what enters {consumer.module} on the data is not finite")
    return total


def _removals(
    graph: DependencyGraph, group: Group, consumer: Consumer, scores: Tensor
) -> list[tuple[int, Tensor]]:
    """How many units go, and the columns of the consumer's matrix that then stay, int64."""
    order = torch.argsort(scores, stable=True).tolist()
    counts = sorted({round(share * group.size) for share in SHARES} & set(range(1, group.size)))
    if group.size <= len(SHARES) + 1:
        counts = list(range(1, group.size))
    weight = graph.traced.tensors[consumer.site.tensor]
    kernel = matrices.weight_matrix(consumer, weight).shape[1] // weight.shape[consumer.site.axis]
    found = []
    for count in counts:
        units = torch.tensor(sorted(order[count:])).numpy()
        resize = Resizer(graph.inferred, {find(group.dim): units}, graph.traced.sizes)
        kept = resize.index(consumer.site.layout)
        found.append((count, (kept[:, None] * kernel + torch.arange(kernel)).flatten()))
    return found


def _costs(
    graph: DependencyGraph,
    held: _Run,
    consumer: Consumer,
    moments: Tensor,
    dense: Sequence[Tensor],
    end: fx.Node,
    removals: Sequence[tuple[int, Tensor]],
) -> list[float]:
    """The divergence of each option."""
    traced = graph.traced
    weight = traced.tensors[consumer.site.tensor].detach()
    matrix = matrices.weight_matrix(consumer, weight).double()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    changes = [
        (_refit(matrix, moments, kept.to(matrix.device)) - matrix).to(dtype) for _, kept in removals
    ]
    totals, tokens = [0.0] * len(changes), 0
    for number, (values, hidden) in enumerate(zip(held.run.values, held.masks, strict=True)):
        rows = matrices.input_rows(consumer, values[consumer.source], weight)
        whole = held.run.ahead(number, consumer.node)
        output = matrices.output_rows(consumer, whole)
        mask = hidden.get(row_count(traced, end.meta["val"].shape[:-1]))
        for place, change in enumerate(changes):
            less = matrices.output_tensor(consumer, output + rows @ change.T, whole)
            logits = _log_softmax(held.run.ahead(number, end, {consumer.node: less}))
            each = functional.kl_div(logits, dense[number], reduction="none", log_target=True)
            each = each.sum(-1) if mask is None else each.sum(-1)[mask]
            totals[place] += float(each.sum())
        tokens += len(each)
    costs = [max(0.0, total / max(1, tokens)) for total in totals]
    if not all(map(math.isfinite, costs)):
        raise CalibrationError(f"without units of {consumer.module} the logits are not finite")
    return costs


def _refit(matrix: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The matrix with zeros where columns go, the others refitted to what all gave together."""
    there = moments[kept][:, kept]
    lacking = matrix @ moments[:, kept] - matrix[:, kept] @ there
    found = torch.zeros_like(matrix)
    found[:, kept] = matrix[:, kept] + damped_solve(there, lacking, DAMPING)
    return found


def _log_softmax(logits: Any) -> Tensor:
    found: Tensor = logits.float().flatten(0, -2).log_softmax(-1)
    return found


def _rescaled(scores: Tensor, rungs: Sequence[Rung]) -> Tensor:
    """Scores of one group whose sums up to each rung are what was measured there."""
    values, order = scores.double().sort()
    found = torch.empty_like(values)
    begin, before = 0, Rung(0, 0.0, 0.0)
    ratio = 1.0
    for rung in (*rungs, None):
        part = values[begin : rung.removed if rung else len(values)]
        if rung is not None:
            predicted, measured = rung.predicted - before.predicted, rung.measured - before.measured
            ratio = max(measured, 0.0) / predicted if predicted > 0 else ratio
            before = rung
        found[begin : begin + len(part)] = part * ratio
        begin += len(part)
    # A rung that cost less than the one before, or units that cost nothing: the order stays.
    steady = found.cummax(0).values
    result = torch.empty_like(steady)
    result[order] = steady
    return result.to(scores.dtype)
