"""What the engine that must run a result means for pruning: its limits, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import step
from fxprune.select.depth import Depth
from fxprune.select.select import select
from fxprune.select.surcharge import Surcharge, surcharge
from fxprune.select.target import Target
from fxprune.serve.engine import engine
from fxprune.trace import Traced


def check_depth(traced: Traced, target: str | None, depth: Depth) -> None:
    """Refuse what an engine cannot leave out, before any block is scored.

    Raises:
        ServeError: it cannot, or it cannot run the model.
    """
    if target is not None:
        engine(target).target(discover(traced)).check_depth(depth.unit)


def limits(
    graph: DependencyGraph,
    target: str | None,
    selection: Mapping[str, Any],
    asked: Sequence[Mapping[str, Any]],
    progress: bool,
) -> dict[str, Target]:
    """The limits of an engine, tried on a plan of equal scores before any unit is scored.

    Raises:
        ServeError: the engine cannot run the model, or such a plan.
        SelectionError: it leaves nothing to prune, or the goal cannot be met.
    """
    if target is None:
        return {}
    with step(f"asking what {target} can run", progress):
        serving = engine(target)
        found = serving.target(graph)
        tried = Plan.of(graph, {})
        if asked:
            alike = {group.name: torch.zeros(group.size) for group in graph.groups}
            tried = select(graph, alike, **asked[-1], **{**selection, "target": found})
        serving.require(tried, graph)
    return {"target": found}


def cost(
    graph: DependencyGraph,
    target: str | None,
    scores: Scores,
    plan: Plan,
    selection: Mapping[str, Any],
    asked: Sequence[Mapping[str, Any]],
) -> Surcharge | None:
    """What the limits of an engine cost, once the plan is found to keep to them.

    Raises:
        ServeError: it does not.
    """
    if target is None:
        return None
    engine(target).require(plan, graph)
    return surcharge(graph, scores, plan, {**asked[-1], **selection}) if asked else None
