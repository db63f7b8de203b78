"""One number for the logits: a pruned model is surer of itself than it has reason to be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, fx

from fxprune.compensate.edits import Write, own
from fxprune.compensate.head import Factor, factors
from fxprune.compensate.places import place, readers
from fxprune.compensate.streamed import Streamed
from fxprune.data.calibrate import Batch, batches
from fxprune.data.graph_inputs import graph_inputs
from fxprune.data.loss import output_loss, predictions
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.progress import step
from fxprune.trace.branching import BranchingRun
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.traced import Traced

ENOUGH = 4096  # predictions; of one number they leave an error well below a hundredth
_DONE = "temperature"
_STEP, _MOST = 0.05, 8  # of the logarithm


def fit_temperature(
    graph: DependencyGraph,
    small: fx.GraphModule,
    data: Sequence[Batch],
    write: Write,
    *,
    ignore: Collection[str] = (),
    progress: bool = False,
    pieces: Streamed | None = None,
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
        pieces: the weights, where they are not in memory.

    Returns:
        The temperature, 1.0 if no higher one is better, and 1.5 at most; or why none can be found.

    Raises:
        CalibrationError: the loss is not finite.
    """
    at = readers(graph.traced, small)
    found = _movable(graph, at, ignore)
    if isinstance(found, str):
        return found
    if pieces is not None and (known := pieces.mended.done.get(_DONE)) is not None:
        return cast("float", known[_DONE])
    try:
        few = _few(graph.traced, data, pieces)
    except CalibrationError as error:
        return str(error)
    best = _fitted(graph.traced, small, found, at, few, write, progress, pieces)
    if pieces is not None:
        pieces.mended.put(_DONE, pieces.taken(), {_DONE: best})
    return best


def _fitted(
    traced: Traced,
    small: fx.GraphModule,
    found: Sequence[Factor],
    at: Mapping[str, fx.Node],
    few: Sequence[tuple[Batch, list[Any]]],
    write: Write,
    progress: bool,
    pieces: Streamed | None,
) -> float:
    places = [(*place(traced, small, at[each.tensor], each.tensor), each) for each in found]
    for holder, leaf, each in places if pieces is None else ():
        own(holder, leaf, traced.tensors[each.tensor])
    first = {at[each.tensor] for each in found}
    scaled: list[tuple[Tensor, Tensor, float]] = []

    def divide(logarithm: float) -> None:
        for tensor, value, offset in scaled:
            tensor.copy_((value.double() + offset) * math.exp(-logarithm) - offset)

    def loss(logarithm: float) -> float:
        divide(logarithm)
        total, count = 0.0, 0
        for (batch, _), finish in zip(few, stopped, strict=True):
            lost, labels = output_loss(traced.module, batch, finish())
            total, count = total + float(lost), count + labels
        if not math.isfinite(total):
            raise CalibrationError(
                f"the loss of the pruned model on the calibration data is {total}"
            )
        return total / count

    with step("fitting the temperature", progress):
        node = next(node for node in small.graph.nodes if node in first)
        stopped = _stopped(small, [inputs for _, inputs in few], node, pieces)
        for holder, leaf, each in places:
            tensor: Tensor = getattr(holder, leaf)
            value = tensor.detach().clone()
            write(tensor, value)  # on an error later on it comes back
            scaled.append((tensor, value, each.offset))
        best = least(loss)
    divide(best)
    return math.exp(best)


def _stopped(
    small: fx.GraphModule, inputs: Sequence[list[Any]], node: fx.Node, pieces: Streamed | None
) -> list[Callable[[], Any]]:
    """Of each batch what gives the output, all before a node being computed."""
    if pieces is None:
        run = BranchingRun(small)
        before = run.before(node)
        stops = (next(run.stops(each, [before]))[1] for each in inputs)
        return [functools.partial(run.finish, before, values, {}) for values in stops]
    end = small.graph.output_node()
    lockstep = Lockstep(small, inputs, [node, end], **pieces.runs()[1])
    for _ in lockstep.advance(node):
        pass

    def finish(number: int) -> Any:
        return small.graph.process_outputs(lockstep.ahead(number, end))

    finish(0)  # what follows is there now
    return [functools.partial(finish, number) for number in range(len(inputs))]


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


def _few(
    traced: Traced, data: Sequence[Batch], pieces: Streamed | None
) -> list[tuple[Batch, list[Any]]]:
    """Some of the data, spread over it: single sequences if the graph takes them."""
    device = None if pieces is None else pieces.dense.source.device
    single = batches(traced.module, data, 1, device)
    try:
        if not traced.guards.take(graph_inputs(traced, single[0])):
            single = list(data)
    except CalibrationError:
        single = list(data)
    total = sum(predictions(traced.module, single))
    return [(each, graph_inputs(traced, each)) for each in single[:: max(1, total // ENOUGH)]]
