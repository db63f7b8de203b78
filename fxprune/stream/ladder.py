"""A ladder of options for each group, with what each costs: predicted and measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fxprune.groups.dependency import DependencyGraph
from fxprune.importance.scores import Scores


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
    """What :func:`fxprune.stream.options.measure_ladder` found.

    Attributes:
        rungs: of each group that could be measured, by name, those with fewest units first.
        units: of each branch and block that was tried, by name, the divergence without it.
        skipped: the other groups, with the reason.
        seconds: wall-clock time.
    """

    rungs: Mapping[str, tuple[Rung, ...]]
    units: Mapping[str, float] = field(default_factory=dict)
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

    def within(self, most: Mapping[str, int]) -> Ladder:
        """The rungs at which each group loses no more units than it may; none if unlisted."""
        found = {
            name: tuple(rung for rung in rungs if rung.removed <= most.get(name, 0))
            for name, rungs in self.rungs.items()
        }
        return replace(self, rungs=found)

    def __str__(self) -> str:
        count = sum(map(len, self.rungs.values())) + len(self.units)
        skipped = f", {len(self.skipped)} groups not measured" if self.skipped else ""
        groups = f"{len(self.rungs)} groups measured in {self.seconds:.0f} s"
        return f"{count} options of {groups}{skipped}"


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
