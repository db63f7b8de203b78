"""What becomes of a model under a plan."""

from __future__ import annotations

import torch

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


def sliced(
    graph: DependencyGraph, resize: Resizer, name: str, tensor: torch.Tensor
) -> torch.Tensor | None:
    """What a plan leaves of a tensor of the dense model.

    Args:
        graph: see :func:`planned`.
        resize: likewise.
        name: of the tensor in the model, under whichever of its names.
        tensor: the tensor.

    Returns:
        The tensor itself if it loses nothing; None if it has not the shape of the model's.
    """
    layouts = graph.layouts.get(graph.traced.canonical(name))
    if layouts is None:
        return tensor
    if tuple(layout.size for layout in layouts) != tuple(tensor.shape):
        return None
    return resize.slice(tensor, layouts)
