"""The two runs of compensation with only the weights that run present."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from fxprune.compensate.dense import Dense
from fxprune.compensate.matching import Match
from fxprune.compensate.mended import Mended
from fxprune.compensate.refit import Refit
from fxprune.compensate.report import Compensated
from fxprune.data.held import Held, holding
from fxprune.data.loader import Source
from fxprune.errors import CalibrationError
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.rewrite.on_demand import DenseWeights, SmallWeights


@dataclass(eq=False)
class Streamed:
    """Weights of the dense model and of the smaller graph, and what was written into those.

    Attributes:
        dense: of the dense model.
        small: of the smaller graph.
        held: the values between the stops.
        mended: where new values go.
    """

    dense: DenseWeights
    small: SmallWeights
    held: Held
    mended: Mended
    _written: set[int] = field(default_factory=set)

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put a value into a tensor of the smaller graph that is there."""
        tensor.data.copy_(value)
        self._written.add(tensor.untyped_storage()._cdata)

    def runs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of both runs."""
        store = {"store": self.held}
        return {"weights": self.dense, **store}, {"weights": self.small, **store}

    def mend(self, refit: Refit, mend: Callable[[Match], Compensated], match: Match) -> Compensated:
        """Mend a consumer and hold its new values, unless that was done before."""
        known = self.mended.known(match.name)
        if known is not None:
            refit.skip(match)
            return known
        self.small.bring([match.node], beside=True)
        done = mend(match)
        self.mended.note(done, self.taken())
        return done

    def taken(self) -> dict[str, Tensor]:
        """The tensors that were written into since the last call."""
        here = self.small.here.items()
        new = {name: x for name, x in here if x.untyped_storage()._cdata in self._written}
        self._written.clear()
        return new


@contextlib.contextmanager
def streaming(
    graph: DependencyGraph,
    resize: Resizer,
    dense: Dense,
    small: fx.GraphModule,
    plan: Plan,
    source: Source | None,
    mended: Mended | None,
) -> Iterator[Streamed | None]:
    """Both models with their weights on demand; None where they are in memory.

    Args:
        graph: the groups of the original.
        resize: what becomes of their axes.
        dense: the dense model.
        small: the smaller graph, on ``meta``.
        plan: the plan.
        source: where the weights come from.
        mended: where new values go.

    Raises:
        CalibrationError: one of the two is missing, or the smaller graph has weights.
        CheckpointError: the source has not all of the weights.
    """
    if (source is None) != (mended is None):
        raise CalibrationError("stream= reads the weights, mended= takes the new ones: give both")
    if source is None or mended is None:
        yield None
        return
    if any(not each.is_meta for each in small.parameters()):
        raise CalibrationError(
            "stream= reads the weights of both models: rewrite a model on meta, without weights"
        )
    source.check(dense.traced.original or dense.traced)
    weights = DenseWeights(dense.traced, source)
    own = SmallWeights(graph, resize, small, plan.biases, weights, mended)
    with holding(source.memory, source.scratch) as held:
        try:
            yield Streamed(weights, own, held, mended)
        finally:
            weights.bring(())
            own.bring(())
