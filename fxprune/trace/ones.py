"""Sizes of one: whether a graph that was captured for more is right there, found by running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.trace.guards import Expression, Guards, check, guard, symbols
from fxprune.trace.inputs import Example, resized
from fxprune.trace.meta import exchanged
from fxprune.trace.modes import as_captured, seeded
from fxprune.trace.outputs import compared
from fxprune.trace.sizes import is_symbolic
from fxprune.trace.state import preserved
from fxprune.trace.symbols import spelled
from fxprune.trace.traced import Traced

_SQUEEZES = {torch.ops.aten.squeeze, torch.ops.aten.squeeze_}


def with_ones(model: nn.Module, graph: fx.GraphModule, capture: Example) -> Guards:
    """The guards, with a size of one wherever the graph computes there what the model does.

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
        if low > 2 or guards.example[name] == 1:
            continue
        alone = {**guards.example, name: 1}
        size = guards.example[name]
        together = {n: 1 if other == size else other for n, other in guards.example.items()}
        agree = _agree(model, graph, guards, capture.args, capture.kwargs, alone)
        if agree is None:  # the batch of a mask, say, must be that of the tokens
            agree = _agree(model, graph, guards, capture.args, capture.kwargs, together)
        if agree:
            guards = guards.admitting(name)
        elif agree is False and guards.allow(alone):  # what a squeeze leaves is asked of no size
            guards = replace(guards, conditions=(*guards.conditions, ("ne", name, 1)))
    return guards


def admit_ones(traced: Traced) -> None:
    """Let a graph of a model without weights take sizes of one, wherever it is the model there.

    That hangs on no weights in particular, so both are run with others, which take no memory:
    those of a tensor are windows into one short row of random numbers.

    Args:
        traced: the model; its guards change, and the check of its graph.
    """
    model, module = traced.module, traced.graph_module
    own = {id(t): t for t in (*model.parameters(), *model.buffers(), *traced.tensors.values())}
    with seeded():
        others = {place: _windows(t) for place, t in own.items() if t.is_meta}
        inputs = pytree.tree_map_only(torch.Tensor, _values, (traced.args, traced.kwargs))

    def swapped(tensor: torch.Tensor) -> torch.Tensor:
        return others.get(id(tensor), tensor)

    guards = traced.guards
    for node in module.graph.find_nodes(op="call_function", target=check):
        module.graph.erase_node(node)
    module.recompile()
    try:
        with exchanged(model, swapped), exchanged(module, swapped), as_captured(model):
            guards = with_ones(model, module, replace(traced, args=inputs[0], kwargs=inputs[1]))
    finally:
        traced.guards = without_squeezed(module.graph, guards)
        guard(module, traced.guards)


def _windows(tensor: torch.Tensor) -> torch.Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    row = torch.randn(max(sum(tensor.shape), 1)) * (tensor.shape[-1] if tensor.dim() else 1) ** -0.5
    made = row.to(tensor.dtype).as_strided(tensor.shape, (1,) * tensor.dim())
    return nn.Parameter(made, False) if isinstance(tensor, nn.Parameter) else made


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """An input with values, where it has none: of whole numbers ones and zeros."""
    if not tensor.is_meta:
        return tensor
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, dtype=tensor.dtype)
    return (1 - torch.arange(tensor.numel()).view(tensor.shape) % 2).to(tensor.dtype)


def without_squeezed(graph: fx.Graph, guards: Guards) -> Guards:
    """The guards, refusing a size of one along every axis that a squeeze would then take away.

    Values have other ranks there than those that the graph was analysed with.
    """
    squeezed = []
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) in _SQUEEZES:
            value = node.args[0].meta["val"]
            named = node.args[1] if len(node.args) > 1 else range(value.dim())
            for axis in [named] if isinstance(named, int) else named:
                squeezed.append(value.shape[axis])
    found: list[Expression] = []
    for size in filter(is_symbolic, squeezed):
        said = spelled(size)
        clear = symbols(said) <= set(guards.ranges)
        found += [("ne", each, 1) for each in ([said] if clear else guards.ranges)]
    return replace(guards, conditions=tuple(dict.fromkeys((*guards.conditions, *found))))


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
) -> bool | None:
    """Whether both give the same at these sizes; None where one of them gives nothing."""
    results = []
    for run in (model, graph):
        inputs = resized((args, kwargs), guards, sizes)
        try:
            with preserved(model), seeded():
                results.append(pytree.tree_leaves(run(*inputs[0], **inputs[1])))
        except Exception:
            return None
    first, second = results
    return len(first) == len(second) and not any(
        compared("", one, other).problem for one, other in zip(first, second, strict=True)
    )
