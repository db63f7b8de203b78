"""What becomes of a model under a plan."""

from __future__ import annotations

from fxprune.branches.bypass import bypass
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.trace.traced import Traced


def planned(traced: Traced, plan: Plan) -> tuple[DependencyGraph, Resizer]:
    """The groups of a model without what a plan removes whole, and what becomes of their axes.

    Raises:
        PlanError: the plan does not fit the model.
        DepthError: it removes a branch or block that the model has not.
    """
    graph = discover(bypass(traced, plan.removed))
    plan.check(graph)
    return graph, Resizer(graph.inferred, plan.kept_units(graph), graph.traced.sizes)
