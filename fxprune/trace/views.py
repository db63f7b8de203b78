"""Views that hold at the strides of the trace may not hold at those of a run.

An attention kernel lays out its result otherwise for other head sizes, and some kernels otherwise
than the ops say that export runs for them; an axis of one unit merges with any other; and export
has dropped every ``contiguous()`` that had nothing to do.
"""

from __future__ import annotations

import torch
from torch import fx

from fxprune.trace.storage import Memory, mutates

aten = torch.ops.aten


def relax(graph: fx.Graph) -> None:
    """Make every view a reshape, which copies where it must, but for views of memory written to."""
    memory = Memory(graph) if any(map(mutates, graph.nodes)) else None
    for node in graph.nodes:
        if node.target is aten.view.default and not (memory and memory.written(node)):
            node.target = aten.reshape.default
