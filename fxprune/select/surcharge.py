"""What the limits of an engine cost, as the scores predict it: two plans side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.plan import Plan
from fxprune.select.select import select

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


@dataclass(frozen=True)
class Surcharge:
    """A plan for an engine beside the free one of the same scores and budget.

    Attributes:
        name: of the engine.
        lost: the sum of the scores of all units that the plan removes; of scores that have no scale
            common to all kinds, in units of the mean score of a kind.
        freely: likewise, of the free plan.
        free: that plan.
    """

    name: str
    lost: float
    freely: float
    free: Plan

    @property
    def more(self) -> float | None:
        """The fraction by which more is lost; None where nothing is lost freely."""
        return self.lost / self.freely - 1 if self.freely > 0 else None

    def __str__(self) -> str:
        if self.more is None:
            return f"for {self.name}: {self.lost:.3g} of the score is lost, freely nothing"
        word = "less" if self.more < 0 else "more"
        return (
            f"for {self.name}: {abs(self.more):.1%} {word} of the score is lost than freely "
            "(predicted; fxprune compare --for measures)"
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the plan, for JSON."""
        return {"name": self.name, "lost": self.lost, "freely": self.freely, "more": self.more}


def surcharge(
    graph: DependencyGraph, scores: Mapping[str, Any], plan: Plan, options: Mapping[str, Any]
) -> Surcharge:
    """Choose once more without the limits, and compare.

    Args:
        graph: the groups of the model.
        scores: group name to scores of shape (size,).
        plan: what was chosen for an engine.
        options: of :func:`fxprune.select`, the ``target`` among them.
    """
    free = select(graph, scores, **{**options, "target": None})
    own = getattr(scores, "ranking", {})
    common = (options.get("normalise") or own.get("normalise")) == "none"
    lost, freely = (_lost(graph, scores, each, common) for each in (plan, free))
    return Surcharge(options["target"].name, lost, freely, free)


def _lost(graph: DependencyGraph, scores: Mapping[str, Any], plan: Plan, common: bool) -> float:
    found = 0.0
    for name, kept in plan.kept.items():
        kind = graph[name].kind
        alike = [g.name for g in graph.groups if g.kind == kind and g.name in scores]
        values = np.concatenate([np.abs(_numbers(scores[other])) for other in alike])
        scale = 1.0 if common else float(values[np.isfinite(values)].mean()) or 1.0
        found += float(np.delete(_numbers(scores[name]), kept).sum()) / scale
    return found


def _numbers(scores: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(scores, dtype=np.float64)
