"""The original with the units of a plan zeroed in its own weights, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan


@contextlib.contextmanager
@torch.no_grad()
def zeroed(graph: DependencyGraph, plan: Plan) -> Iterator[None]:
    """Zero the removed units in the traced model's parameters; put everything back at the end.

    Only the removed slices are held in memory. The model then computes what the pruned one does,
    save for units that are averaged in a norm (``group.normalised``), which still count there.

    Args:
        graph: the groups of the model, whose tensors are changed.
        plan: what stays.

    Raises:
        PlanError: the plan does not fit the model.
    """
    plan.check(graph)
    traced = graph.traced
    resize = Resizer(graph.inferred, plan.kept_units(graph), traced.sizes)
    saved: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    try:
        for site in dict.fromkeys(s for name in plan.kept for s in graph[name].sites):
            if not site.parameter:
                continue
            tensor = traced.tensors[site.tensor]
            places = resize.removed(site.layout).to(tensor.device)
            saved.append((tensor, site.axis, places, tensor.index_select(site.axis, places)))
            tensor.data.index_fill_(site.axis, places, 0)
        yield
    finally:
        # Backwards: a slice saved later lacks what an earlier one zeroed.
        for tensor, axis, places, values in reversed(saved):
            tensor.data.index_copy_(axis, places, values)
