"""Views that hold at the strides of the trace may not hold at those of a smaller model.

An attention kernel lays out its result otherwise for other head sizes, an axis of one unit merges
with any other, and export has dropped every ``contiguous()`` that had nothing to do.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import fx

from fxprune.trace.storage import Memory, mutates

aten = torch.ops.aten
_SHAPED = (aten.view.default, aten.reshape.default)


def relax(graph: fx.Graph) -> None:
    """Make every view a reshape, which copies where it must, but for views of memory written to."""
    memory = Memory(graph) if any(map(mutates, graph.nodes)) else None
    for node in graph.nodes:
        if node.target is aten.view.default and not (memory and memory.written(node)):
            node.target = aten.reshape.default


def enters(source: fx.Node, nodes: Iterable[fx.Node]) -> bool:
    """Whether a module with these nodes views its input, which must then be contiguous."""
    return any(node.target in _SHAPED and node.args[0] is source for node in nodes)


def shares(node: fx.Node) -> bool:
    """Whether the result may be the memory of the first argument."""
    schema = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None else ()
    return node.target is operator.getitem or any(r.alias_info is not None for r in returns)
