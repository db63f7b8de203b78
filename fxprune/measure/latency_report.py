"""What a latency budget came to: asked, predicted, measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fxprune.measure.latency import timed, unpruned
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.latency import LatencyTable
from fxprune.select.select import select

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.plan import Plan
    from fxprune.trace import Traced

ROUNDS = 15


@dataclass(frozen=True)
class LatencyReport:
    """A pruned model's latency beside what was asked for, as fractions of the original's.

    Attributes:
        shape: sequences and tokens of the forward pass.
        asked: what may stay.
        predicted: from the table, corrected by a measurement where :func:`fxprune.prune` chose
            the plan.
        measured: of both models in turns, afterwards; None where the original is gone.
        machine: where, in words.
    """

    shape: tuple[int, int]
    asked: float
    predicted: float
    measured: float | None
    machine: str

    @property
    def error(self) -> float | None:
        """How far the measured latency is from the predicted one, as a fraction of it."""
        return None if self.measured is None else self.measured / self.predicted - 1

    def __str__(self) -> str:
        batch, length = self.shape
        words = f"latency of {batch} x {length} tokens: {self.asked:.3f} x the original's asked"
        words += f", {self.predicted:.3f} predicted"
        if self.error is None:
            return words
        return f"{words}, {self.measured:.3f} measured ({100 * self.error:+.1f} %)"


def corrected(table: LatencyTable, plan: Plan, traced: Traced) -> LatencyTable:
    """The table corrected by a measurement of the plan that was chosen by it.

    Args:
        table: the table.
        plan: the plan.
        traced: the traced original.
    """
    both = [unpruned(traced), rewrite(traced, plan)]
    whole, pruned = timed(traced, both, table.shape, ROUNDS)
    return table.corrected(plan, table.whole * pruned / whole)


def settled(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    plan: Plan,
    kinds: Collection[str],
    asked: Sequence[Mapping[str, Any]],
    selection: dict[str, Any],
) -> Plan:
    """The plan; under a budget of latency, chosen again once the first one was measured.

    The curves of the table are of groups alone. What they save together is measured here, and the
    corrected table takes the other's place in ``selection``.

    Args:
        graph: the groups of the model.
        scores: group name to scores.
        plan: what was chosen first.
        kinds: kinds of groups to prune.
        asked: what each step asked of :func:`fxprune.select`.
        selection: its further options.
    """
    budget = asked[0].get("budget") if len(asked) == 1 else None
    if budget is None or budget.latency is None or not plan.kept:
        return plan
    traced = graph.traced.original or graph.traced
    selection["latency"] = corrected(selection["latency"], plan, traced)
    return select(graph, scores, kinds=kinds, **asked[0], **selection)


def latency_report(
    table: LatencyTable | None,
    asked: float | str | None,
    plan: Plan,
    traced: Traced,
    small: nn.Module | None,
) -> LatencyReport | None:
    """Hold a plan against the table it was chosen by; None where no latency was asked for.

    Args:
        table: the table.
        asked: the budget: a fraction, or milliseconds above 1.
        plan: the plan.
        traced: the traced original.
        small: the pruned model, to be timed in turns with the original; None leaves that out.
    """
    if table is None or asked is None:
        return None
    asked, measured = float(asked), None
    if small is not None:
        large, less = timed(traced, [unpruned(traced), small], table.shape, ROUNDS)
        measured = less / large
    return LatencyReport(
        shape=table.shape,
        asked=asked if asked <= 1 else asked / (1e3 * table.whole),
        predicted=table.predict(plan) / table.whole,
        measured=measured,
        machine=table.machine,
    )
