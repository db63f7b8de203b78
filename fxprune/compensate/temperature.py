"""One number for the logits: a pruned model is surer of itself than it has reason to be."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from fxprune.compensate.edits import Write, own
from fxprune.compensate.head import factors
from fxprune.compensate.places import place, readers
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance.calibrate import Batch, batches
from fxprune.importance.graph_inputs import graph_inputs
from fxprune.importance.loss import output_loss, predictions
from fxprune.trace.branching import BranchingRun
from fxprune.trace.traced import Traced

ENOUGH = 4096  # predictions; of one number they leave an error well below a hundredth
_STEP, _MOST = 0.05, 8  # of the logarithm


class Temperature:
    """Finds the temperature of least loss, as in temperature scaling (Guo et al., 1706.04599).

    The logits are divided by it, by way of the tensors that scale them (the last norm's weight). It
    is 1 at least, for a model is always surer of the data that it is fitted to than of other data.

    Args:
        graph: of the original.
        small: the pruned model. A tensor that it shares with the original and that is to change
            becomes its own.
        data: the calibration batches.

    Attributes:
        reason: why it cannot be found, or None.
    """

    def __init__(
        self, graph: DependencyGraph, small: fx.GraphModule, data: Sequence[Batch]
    ) -> None:
        self._traced, self._small = graph.traced, small
        self._tensors: list[tuple[Tensor, float]] = []
        self._data: list[tuple[Batch, list[Any]]] = []
        found = factors(graph)
        if isinstance(found, str):
            self.reason: str | None = found
            return
        at = readers(graph.traced, small)
        if any(each.tensor not in at for each in found):
            self.reason = "what scales its logits is computed once, not held"
            return
        try:
            self._data = _few(graph.traced, data)
        except CalibrationError as error:
            self.reason = str(error)
            return
        self.reason = None
        nodes = {at[each.tensor] for each in found}
        self._first = next(node for node in small.graph.nodes if node in nodes)
        for each in found:
            holder, leaf = place(graph.traced, small, at[each.tensor], each.tensor)
            own(holder, leaf, graph.traced.tensors[each.tensor])
            self._tensors.append((getattr(holder, leaf), each.offset))

    def fit(self, write: Write) -> float:
        """Scale the logits; call it under ``torch.no_grad`` once all else has changed.

        Args:
            write: puts a value into a tensor.

        Returns:
            The temperature, 1.0 if no higher one is better, and 1.5 at most.

        Raises:
            CalibrationError: the loss is not finite.
        """
        run = BranchingRun(self._small)
        before = run.before(self._first)
        stops = []
        for batch, inputs in self._data:
            _, values, _ = next(run.stops(inputs, [before]))
            stops.append((batch, values))
        old = [(tensor, tensor.detach().clone(), offset) for tensor, offset in self._tensors]
        for tensor, value, _ in old:
            write(tensor, value)  # on an error later on it comes back

        def scaled(logarithm: float) -> float:
            for tensor, value, offset in old:
                tensor.copy_((value.double() + offset) * math.exp(-logarithm) - offset)
            total, count = 0.0, 0
            for batch, values in stops:
                output = run.finish(before, values, {})
                loss, labels = output_loss(self._traced.module, batch, output)
                total, count = total + float(loss), count + labels
            if not math.isfinite(total):
                raise CalibrationError(
                    f"the loss of the pruned model on the calibration data is {total}"
                )
            return total / count

        best = least(scaled)
        scaled(best)
        return math.exp(best)


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
