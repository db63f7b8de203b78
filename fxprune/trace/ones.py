"""Sizes of one: whether a graph that was captured for more is right there, found by running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.trace.guards import Guards
from fxprune.trace.inputs import resized
from fxprune.trace.outputs import compared
from fxprune.trace.state import preserved


class _Capture(Protocol):
    @property
    def guards(self) -> Guards: ...
    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> dict[str, Any]: ...


def with_ones(model: nn.Module, graph: fx.GraphModule, capture: _Capture) -> Guards:
    """The guards, allowing a size of one wherever the graph computes there what the model does.

    Models and torch often ask whether a size is 1, and in most of them nothing hangs on it: a
    single row is broadcast, attention to a single position needs no causal mask.

    Args:
        model: the model, in evaluation mode. On ``meta`` nothing can be run.
        graph: its clean graph, which checks nothing yet.
        capture: the guards, and the inputs that they were found with.
    """
    guards = capture.guards
    if any(t.is_meta or _is_fake(t) for t in (*model.parameters(), *model.buffers())):
        return guards
    for name, (low, _) in guards.ranges.items():
        sizes = {**guards.example, name: 1}
        if low > 2 or guards.allow(sizes) or guards.example[name] == 1:
            continue
        if _agree(model, graph, guards, capture.args, capture.kwargs, sizes):
            guards = guards.admitting(name)
    return guards


def _is_fake(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "fake_mode")


@torch.no_grad()
def _agree(
    model: nn.Module,
    graph: fx.GraphModule,
    guards: Guards,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sizes: Mapping[str, int],
) -> bool:
    """Whether both give the same at these sizes."""
    results = []
    for run in (model, graph):
        inputs = resized((args, kwargs), guards, sizes)
        try:
            with preserved(model), torch.random.fork_rng():
                torch.manual_seed(0)
                results.append(pytree.tree_leaves(run(*inputs[0], **inputs[1])))
        except Exception:
            return False
    first, second = results
    return len(first) == len(second) and not any(
        compared("", one, other).problem for one, other in zip(first, second, strict=True)
    )
