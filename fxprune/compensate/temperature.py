"""One number for the logits: a pruned model is surer of itself than it has reason to be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from fxprune.compensate.edits import Write, own
from fxprune.compensate.head import Factor, factors
from fxprune.compensate.places import place, readers
from fxprune.data.calibrate import Batch, batches
from fxprune.data.graph_inputs import graph_inputs
from fxprune.data.loss import output_loss, predictions
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.progress import step
from fxprune.trace.branching import BranchingRun
from fxprune.trace.traced import Traced

ENOUGH = 4096  # predictions; of one number they leave an error well below a hundredth
_STEP, _MOST = 0.05, 8  # of the logarithm


def fit_temperature(
    graph: DependencyGraph,
    small: fx.GraphModule,
    data: Sequence[Batch],
    write: Write,
    *,
    ignore: Collection[str] = (),
    progress: bool = False,
) -> float | str:
    """Find the temperature of least loss and divide the logits by it (Guo et al., 1706.04599).

    By way of the tensors that scale them (the last norm's weight). It is 1 at least, for a model is
    always surer of the data that it is fitted to than of other data. Call it under
    ``torch.no_grad`` once all else has changed.

    Args:
        graph: of the original.
        small: the pruned model. A tensor that it shares with the original and that is to change
            becomes its own.
        data: the calibration batches.
        write: puts a value into a tensor.
        ignore: tensors that keep their values.
        progress: show that it runs.

    Returns:
        The temperature, 1.0 if no higher one is better, and 1.5 at most; or why none can be found.

    Raises:
        CalibrationError: the loss is not finite.
    """
    traced = graph.traced
    at = readers(traced, small)
    found = _movable(graph, at, ignore)
    if isinstance(found, str):
        return found
    try:
        few = _few(traced, data)
    except CalibrationError as error:
        return str(error)
    scaled = []
    for each in found:
        holder, leaf = place(traced, small, at[each.tensor], each.tensor)
        own(holder, leaf, traced.tensors[each.tensor])
        tensor: Tensor = getattr(holder, leaf)
        value = tensor.detach().clone()
        write(tensor, value)  # on an error later on it comes back
        scaled.append((tensor, value, each.offset))
    run = BranchingRun(small)
    first = {at[each.tensor] for each in found}
    before = run.before(next(node for node in small.graph.nodes if node in first))

    def divide(logarithm: float) -> None:
        for tensor, value, offset in scaled:
            tensor.copy_((value.double() + offset) * math.exp(-logarithm) - offset)

    def loss(logarithm: float) -> float:
        divide(logarithm)
        total, count = 0.0, 0
        for batch, values in stops:
            output = run.finish(before, values, {})
            lost, labels = output_loss(traced.module, batch, output)
            total, count = total + float(lost), count + labels
        if not math.isfinite(total):
            raise CalibrationError(
                f"the loss of the pruned model on the calibration data is {total}"
            )
        return total / count

    with step("fitting the temperature", progress):
        stops = [(batch, next(run.stops(inputs, [before]))[1]) for batch, inputs in few]
        best = least(loss)
    divide(best)
    return math.exp(best)


def _movable(
    graph: DependencyGraph, at: Mapping[str, fx.Node], ignore: Collection[str]
) -> tuple[Factor, ...] | str:
    """What scales the logits, if it may change; or why it may not."""
    found = factors(graph)
    if isinstance(found, str):
        return found
    if any(each.tensor in ignore for each in found):
        return "what scales its logits is in a module to ignore"
    if any(each.tensor not in at for each in found):
        return "what scales its logits is computed once, not held"
    return found


def least(loss: Callable[[float], float]) -> float:
    """Where, from 0 on, a convex function is least: steps down, then the vertex of a parabola."""
    at = functools.cache(lambda steps: loss(steps * _STEP))
    place = 0
    while at(place + 1) < at(place):
        place += 1
        if place == _MOST:
            return place * _STEP
    left, middle, right = (at(place + k) for k in (-1, 0, 1))
    curvature = left - 2 * middle + right
    vertex = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
    return max(0.0, (place + vertex) * _STEP)


def _few(traced: Traced, data: Sequence[Batch]) -> list[tuple[Batch, list[Any]]]:
    """Some of the data, spread over it: single sequences if the graph takes them."""
    single = batches(traced.module, data, 1)
    try:
        graph_inputs(traced, single[0])
    except CalibrationError:
        single = list(data)
    total = sum(predictions(traced.module, single))
    return [(each, graph_inputs(traced, each)) for each in single[:: max(1, total // ENOUGH)]]
