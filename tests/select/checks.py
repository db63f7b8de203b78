"""What every selection must hold to, checked by recounting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch

from fxprune.axes.dims import Dim
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance import Scores
from fxprune.plan import Plan
from tests.toys import ToyGraph

Graph = ToyGraph | DependencyGraph
# Numbers of kept units by dim to a cost, and the most it may be.
Limits = list[tuple[Callable[[Mapping[Dim, int]], int], float]]


def random_scores(graph: Graph, seed: int = 0) -> Scores:
    """Few distinct values, so that ties are common."""
    rng = np.random.default_rng(seed)
    draw = {g.name: torch.from_numpy(rng.integers(0, 9, g.size) / 8.0) for g in graph.groups}
    return Scores(draw, "Random(seed=0)")


def legal_above(size: int, kept: int, multiple: int) -> int:
    """The next larger number of kept units."""
    return next(n for n in range(kept + 1, size + 1) if n == size or n % multiple == 0)


def assert_met(
    graph: Graph,
    plan: Plan,
    limits: Limits,
    multiple: int = 1,
    fixed: Collection[str] = (),
) -> None:
    """All limits are met, and no block of units can come back without breaking one."""
    counts = plan.kept_counts(graph)  # type: ignore[arg-type]
    assert all(cost(counts) <= most for cost, most in limits)
    for name, kept in plan.kept.items():
        if name in fixed:
            continue
        group = graph[name]
        assert len(kept) % multiple == 0
        more = {**counts, group.dim: legal_above(group.size, len(kept), multiple)}
        assert any(cost(more) > most for cost, most in limits), name


def assert_lowest_go(graph: Graph, plan: Plan, scores: Scores) -> None:
    """Of every group the units with the lowest scores went, equal ones by position."""
    for name, kept in plan.kept.items():
        order = np.argsort(scores[name].numpy(), kind="stable")
        assert kept == tuple(sorted(order[graph[name].size - len(kept) :].tolist()))
