"""Latency as a cost: measured curves of the groups, added up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fxprune.errors import SelectionError
from fxprune.groups.parameters import fingerprint
from fxprune.plan import Plan

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


@dataclass(frozen=True)
class LatencyCurve:
    """What groups that are alike save as they lose units.

    Attributes:
        groups: their names.
        kept: numbers of units, ascending; the last is all of them.
        saved: seconds that one such group saves at each of these numbers, never rising; the last
            is 0.
    """

    groups: tuple[str, ...]
    kept: tuple[int, ...]
    saved: tuple[float, ...]


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of one model on one machine, from :func:`fxprune.measure_latency`.

    The latency of a plan is taken as that of the model less what each of its groups saves, as in
    ZipLM (arXiv 2302.04089), section 3.2; between two measured numbers of units it is interpolated.

    Attributes:
        shape: sequences and tokens of the forward pass.
        whole: seconds of the original.
        base: seconds without the removed blocks and branches; ``whole`` where none are.
        curves: what the groups save.
        fingerprint: of the model, as in :class:`fxprune.Plan`.
        removed: the blocks and branches that were removed before.
        machine: where it was measured, in words.
    """

    shape: tuple[int, int]
    whole: float
    base: float
    curves: tuple[LatencyCurve, ...]
    fingerprint: str
    removed: tuple[str, ...]
    machine: str

    def check(self, graph: DependencyGraph, shape: tuple[int, int]) -> None:
        """Refuse another model or another shape.

        Raises:
            SelectionError: it was measured for another.
        """
        same = fingerprint(graph) == self.fingerprint and graph.traced.removed == self.removed
        if not same:
            raise SelectionError("the latency table is of another model: measure this one")
        if shape != self.shape:
            raise SelectionError(
                f"the latency table is for {self.shape}, the budget for {shape}: measure again, or "
                "give the budget that shape"
            )

    def predict(self, plan: Plan) -> float:
        """Seconds of the pruned model.

        Raises:
            SelectionError: the plan prunes a group that was not measured, or removes other blocks.
        """
        if plan.fingerprint != self.fingerprint or plan.removed != self.removed:
            raise SelectionError("the plan is of another model than the latency table")
        curve_of = {name: curve for curve in self.curves for name in curve.groups}
        saved = 0.0
        for name, units in plan.kept.items():
            if name not in curve_of:
                raise SelectionError(unmeasured(name))
            curve = curve_of[name]
            saved += float(np.interp(len(units), curve.kept, curve.saved))
        return self.base - saved

    def corrected(self, plan: Plan, seconds: float) -> LatencyTable:
        """The table with all savings scaled so that it is right for a plan.

        Args:
            plan: a plan that saves something by units of groups.
            seconds: what was measured for it.
        """
        predicted, actual = self.base - self.predict(plan), self.base - seconds
        if predicted <= 0 or actual <= 0:  # noise: nothing to go by
            return self
        curves = [
            replace(curve, saved=tuple(each * actual / predicted for each in curve.saved))
            for curve in self.curves
        ]
        return replace(self, curves=tuple(curves))


def nanoseconds(seconds: float) -> int:
    """Seconds as whole nanoseconds, so that sums come out the same in any order."""
    return round(seconds * 1e9)


def unmeasured(name: str) -> str:
    """What to say of a group that the table does not have."""
    return (
        f"the latency of group {name!r} was not measured: name its kind, kinds=(...), in "
        "fxprune.measure_latency"
    )
