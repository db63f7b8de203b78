"""Options tried one by one in the otherwise dense model: fewer units of a group, or no branch."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxprune.branches import Unit, find_branches
from fxprune.data.calibrate import Calibration, batches, held_out
from fxprune.data.graph_inputs import graph_inputs, masks
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer, consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance.scores import Scores
from fxprune.progress import track
from fxprune.stream.divergence import Change, Divergence, Values
from fxprune.stream.fewer import columns, fewer, moments
from fxprune.stream.ladder import Ladder, Rung
from fxprune.stream.stops import reasons_against
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.modes import evaluation, quick_products

SHARES = (0.15, 0.3, 0.45, 0.6, 0.8)  # of a group's units that go, where it has many
HELD = 8  # of so many sequences of a length one measures


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


@quick_products()
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
    stops, skipped = products_of(graph, scores)
    branches = find_branches(traced)
    for unit in map(branches.__getitem__, units):
        stops.setdefault(unit.exit, Stop()).units.append(unit)
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
        tried = Divergence.of(graph, batches(traced.module, validation, batch_size), order, entries)
        for node in track(order, "measuring options", progress):
            stop = stops[node]
            for _ in tried.run.advance(node):
                pass
            for unit in stop.units:
                (without[unit.name],) = tried.mean(unit.name, node, [_without(unit)])
            if (product := stop.consumer) is None:
                continue
            crossed = moments(traced, fit, hidden, product)
            for group in stop.groups:
                removals = _removals(graph, group, product, scores[group.name])
                changes = [fewer(traced, product, crossed, kept) for _, kept in removals]
                costs = tried.mean(group.name, node, changes)
                cheapest = scores[group.name].double().sort()[0]
                rungs[group.name] = tuple(
                    Rung(count, float(cheapest[:count].sum()), cost)
                    for (count, _), cost in zip(removals, costs, strict=True)
                )
    return Ladder(rungs, without, skipped, time.perf_counter() - started)


def products_of(
    graph: DependencyGraph, scores: Scores
) -> tuple[dict[fx.Node, Stop], dict[str, str]]:
    """The products that read the units of groups, and the groups that have no such product.

    Args:
        graph: the groups of a model.
        scores: of the groups.

    Returns:
        By node the product and its groups, and by name of the other groups the reason.
    """
    stops: dict[fx.Node, Stop] = {}
    skipped = reasons_against(graph, [graph[name] for name in scores])
    for group in (graph[name] for name in scores if name not in skipped):
        consumer = consumers(graph, group)[0]
        if consumer.stack is not None:
            skipped[group.name] = "its units are in stacked weights"
        elif group.size > 1:
            stop = stops.setdefault(consumer.node, Stop(consumer))
            stop.groups.append(group)
    return stops, skipped


@dataclass(eq=False)
class Stop:
    """What is tried at one node: groups whose units its product reads, units that it ends."""

    consumer: Consumer | None = None
    groups: list[Group] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)


def _removals(
    graph: DependencyGraph, group: Group, consumer: Consumer, scores: Tensor
) -> list[tuple[int, Tensor]]:
    """How many units go, and the columns of the consumer's matrix that then stay, int64."""
    order = torch.argsort(scores, stable=True).tolist()
    counts = sorted({round(share * group.size) for share in SHARES} & set(range(1, group.size)))
    if group.size <= len(SHARES) + 1:
        counts = list(range(1, group.size))
    return [(count, columns(graph, consumer, {group.name: order[count:]})) for count in counts]


def _without(unit: Unit) -> Change:
    """What enters a block leaves it; a branch adds nothing."""

    def changed(values: Values, whole: Tensor) -> Tensor:
        found: Tensor = values[unit.entry] if unit.kind == "block" else torch.zeros_like(whole)
        return found

    return changed
