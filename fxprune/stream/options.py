"""Options tried one by one in the otherwise dense model: fewer units of a group, or no branch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxprune.axes.dims import find
from fxprune.branches import Unit, find_branches
from fxprune.compensate import matrices
from fxprune.compensate.head import head, logits_node
from fxprune.compensate.reasons import computes_bias
from fxprune.compensate.residual import SAME_ROWS
from fxprune.compensate.solve import damped_solve
from fxprune.data.calibrate import Batch, Calibration, batches, held_out
from fxprune.data.graph_inputs import Masks, graph_inputs, masks, row_count
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer, consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance.scores import Scores
from fxprune.ops.op import packet
from fxprune.ops.resize import Resizer
from fxprune.progress import track
from fxprune.stream.ladder import Ladder, Rung
from fxprune.stream.stops import reasons_against
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.modes import evaluation
from fxprune.trace.traced import Traced

SHARES = (0.15, 0.3, 0.45, 0.6, 0.8)  # of a group's units that go, where it has many
DAMPING = 0.5  # as compensation has it
EVERY = 4  # of so many tokens the logits of one are compared: a head costs as much as ten layers
HELD = 8  # of so many sequences of a length one measures

Values = dict[fx.Node, Any]
# What a node gives instead, from the values that are alive there and what it gives.
Change = Callable[[Values, Tensor], Tensor]


def measured(
    graph: DependencyGraph,
    scores: Scores,
    calibration: Calibration,
    *,
    units: Collection[str] = (),
    batch_size: int | None = 8,
    progress: bool = False,
) -> tuple[Ladder, Scores]:
    """Measure a ladder on a part of the calibration data, and bring the scores to it.

    The last eighth of the sequences of each length measures; consumers are refitted to the others.

    Args:
        graph: the groups of a model that was traced with its weights.
        scores: of the groups to measure.
        calibration: data as for :func:`fxprune.estimate`.
        units: branches and blocks to try, see :func:`measure_ladder`.
        batch_size: sequences per forward pass.
        progress: show a progress bar.

    Raises:
        CalibrationError: there is too little data; else see :func:`measure_ladder`.
    """
    fit, held = held_out(batches(graph.traced.module, calibration, batch_size), HELD)
    if not held:
        raise CalibrationError(
            "too little calibration data to measure costs on a part of it: give at least four "
            "sequences of one length, or leave out search='measured'"
        )
    ladder = measure_ladder(
        graph, scores, fit, held, units=units, batch_size=batch_size, progress=progress
    )
    return ladder, ladder.scores(graph, scores)


def measure_ladder(
    graph: DependencyGraph,
    scores: Scores,
    calibration: Calibration,
    validation: Calibration,
    *,
    units: Collection[str] = (),
    batch_size: int | None = 8,
    progress: bool = False,
) -> Ladder:
    """Measure what it costs to remove more and more units of each group, all others being there.

    Predicted costs rank the units inside a group; between groups, kinds and layers they are off by
    factors. So for each group some numbers of units are tried in the otherwise dense model: the
    cheapest by their scores go, the product that reads them is refitted by least squares to what it
    gave (on the calibration data), and the Kullback-Leibler divergence of the logits from the dense
    model's is taken on every fourth token of the validation data. (As Puzzle, Bercovich et al.,
    arXiv 2411.19146, scores its options.) What lies before an option is computed once for all that
    begin there.

    Args:
        graph: the groups of a model that was traced with its weights.
        scores: of the groups to measure.
        calibration: data to refit on, as for :func:`fxprune.estimate`.
        validation: other data to measure on.
        units: names of branches and blocks of :func:`fxprune.find_branches`; the model is tried
            without each.
        batch_size: sequences per forward pass.
        progress: show a progress bar.

    Raises:
        CalibrationError: the data does not fit the model, a value is not finite, or the model gives
            no logits.
        DepthError: a unit is unknown or cannot be removed.
    """
    started = time.perf_counter()
    traced = graph.traced
    stops: dict[fx.Node, _Stop] = {}
    skipped = reasons_against(graph, [graph[name] for name in scores])
    for group in (graph[name] for name in scores if name not in skipped):
        consumer = consumers(graph, group)[0]
        if consumer.stack is not None:
            skipped[group.name] = "its units are in stacked weights"
        elif group.size > 1:
            stop = stops.setdefault(consumer.node, _Stop(consumer))
            stop.groups.append(group)
    branches = find_branches(traced)
    for unit in map(branches.__getitem__, units):
        stops.setdefault(unit.exit, _Stop()).units.append(unit)
    order = [node for node in traced.graph_module.graph.nodes if node in stops]
    entries = {unit.exit: [unit.entry] for stop in stops.values() for unit in stop.units}
    rungs: dict[str, tuple[Rung, ...]] = {}
    without: dict[str, float] = {}
    with evaluation(traced.graph_module), torch.no_grad():
        data = [
            graph_inputs(traced, batch) for batch in batches(traced.module, calibration, batch_size)
        ]
        hidden = [masks(traced, values) for values in data]
        products = [node for node in order if stops[node].consumer is not None]
        fit = Lockstep(traced.graph_module, data, products)
        tried = _Divergence.of(
            graph, batches(traced.module, validation, batch_size), order, entries
        )
        for node in track(order, "measuring options", progress):
            stop = stops[node]
            for _ in tried.run.advance(node):
                pass
            for unit in stop.units:
                (without[unit.name],) = tried.mean(unit.name, node, [_without(unit)])
            if (product := stop.consumer) is None:
                continue
            moments = _moments(traced, fit, hidden, product)
            for group in stop.groups:
                removals = _removals(graph, group, product, scores[group.name])
                changes = [_fewer(traced, product, moments, kept) for _, kept in removals]
                costs = tried.mean(group.name, node, changes)
                cheapest = scores[group.name].double().sort()[0]
                rungs[group.name] = tuple(
                    Rung(count, float(cheapest[:count].sum()), cost)
                    for (count, _), cost in zip(removals, costs, strict=True)
                )
    return Ladder(rungs, without, skipped, time.perf_counter() - started)


@dataclass(eq=False)
class _Stop:
    """What is tried at one node: groups whose units its product reads, units that it ends."""

    consumer: Consumer | None = None
    groups: list[Group] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Divergence:
    """A run of the dense model that is gone on with under one change after the other.

    Attributes:
        traced: the dense model.
        run: its run.
        end: the input of the head, or the logits where more than a head makes them.
        last: the head, if it is what makes them.
        places: of each batch, the rows of the tokens that are compared.
        dense: of each batch, the logarithms of the probabilities there.
    """

    traced: Traced
    run: Lockstep
    end: fx.Node
    last: Consumer | None
    places: list[Tensor]
    dense: list[Tensor]

    @classmethod
    def of(
        cls,
        graph: DependencyGraph,
        data: Sequence[Batch],
        order: Sequence[fx.Node],
        keep: Mapping[fx.Node, Sequence[fx.Node]],
    ) -> _Divergence:
        traced = graph.traced
        end, last = _end(graph)
        inputs = [graph_inputs(traced, batch) for batch in data]
        run = Lockstep(traced.graph_module, inputs, [*order, end], keep)
        count = row_count(traced, end.meta["val"].shape[:-1])
        found = cls(traced, run, end, last, [], [])
        for number, values in enumerate(inputs):
            value = run.ahead(number, end)
            mask = masks(traced, values).get(count)
            places = torch.arange(value.shape[:-1].numel(), device=value.device)
            places = places if mask is None else places[mask]
            found.places.append(places[EVERY - 1 :: EVERY])
            found.dense.append(found._logarithms(number, value))
        return found

    def mean(self, name: str, node: fx.Node, changes: Sequence[Change]) -> list[float]:
        """The divergence under each change, nats per token; the run stands before the node.

        Raises:
            CalibrationError: it is not finite.
        """
        totals, tokens = [0.0] * len(changes), 0
        for number, values in enumerate(self.run.values):
            whole = self.run.ahead(number, node)
            for place, change in enumerate(changes):
                value = self.run.ahead(number, self.end, {node: change(values, whole)})
                found = self._logarithms(number, value)
                lost = functional.kl_div(
                    found, self.dense[number], reduction="sum", log_target=True
                )
                totals[place] += float(lost)
            tokens += len(self.places[number])
        costs = [max(0.0, total / max(1, tokens)) for total in totals]
        if not all(map(math.isfinite, costs)):
            raise CalibrationError(f"{name}: without it the logits are not finite")
        return costs

    def _logarithms(self, number: int, value: Tensor) -> Tensor:
        """Logarithms of the probabilities at the tokens that are compared, (tokens, vocabulary)."""
        found = value.flatten(0, -2).index_select(0, self.places[number])
        if self.last is not None:
            weight = self.traced.tensors[self.last.site.tensor]
            matrix = matrices.weight_matrix(self.last, weight).to(found.dtype)
            bias = self.traced.tensors.get(self.last.bias or "")
            found = functional.linear(found, matrix, bias)
        return found.float().log_softmax(-1)


def _end(graph: DependencyGraph) -> tuple[fx.Node, Consumer | None]:
    """What the logits are made of, and the head that makes them.

    Raises:
        CalibrationError: the model gives no logits.
    """
    node = logits_node(graph.traced)
    if node is None:
        raise CalibrationError(
            f"{type(graph.traced.module).__name__} gives no logits whose divergence could be "
            "measured"
        )
    product, value = head(graph), node
    while product is not None and value is not product.node and packet(value) in SAME_ROWS:
        value = value.all_input_nodes[0]
    if product is None or value is not product.node or computes_bias(product):
        return node, None
    return product.source, product


def _moments(traced: Traced, fit: Lockstep, hidden: Sequence[Masks], consumer: Consumer) -> Tensor:
    """``X^T X`` of what enters a product, over all tokens that count, float64."""
    weight = traced.tensors[consumer.site.tensor]
    count = row_count(traced, consumer.source.meta["val"].shape[:-1])
    total: Tensor | None = None
    for values, each in zip(fit.advance(consumer.node), hidden, strict=True):
        found = matrices.input_rows(consumer, values[consumer.source], weight)
        mask = None if matrices.convolves(consumer) else each.get(count)
        found = found if mask is None else found[mask]
        part = (found.T @ found).double()
        total = part if total is None else total.add_(part)
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


def _fewer(traced: Traced, consumer: Consumer, moments: Tensor, kept: Tensor) -> Change:
    """Columns of a product's matrix go, the others are refitted to what all gave together."""
    weight = traced.tensors[consumer.site.tensor].detach()
    matrix = matrices.weight_matrix(consumer, weight).double()
    kept = kept.to(matrix.device)
    there = moments[kept][:, kept]
    lacking = matrix @ moments[:, kept] - matrix[:, kept] @ there
    change = -matrix
    change[:, kept] = damped_solve(there, lacking, DAMPING)
    difference = change.to(torch.promote_types(weight.dtype, torch.float32))

    def changed(values: Values, whole: Tensor) -> Tensor:
        entering = matrices.input_rows(consumer, values[consumer.source], weight)
        less = matrices.output_rows(consumer, whole) + entering @ difference.T
        return matrices.output_tensor(consumer, less, whole)

    return changed


def _without(unit: Unit) -> Change:
    """What enters a block leaves it; a branch adds nothing."""

    def changed(values: Values, whole: Tensor) -> Tensor:
        found: Tensor = values[unit.entry] if unit.kind == "block" else torch.zeros_like(whole)
        return found

    return changed
