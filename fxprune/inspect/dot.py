"""Write the dependency graph as Graphviz DOT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.errors import GroupError
from fxprune.files import write_text
from fxprune.inspect.drawing import neurons, overview
from fxprune.inspect.drawing.canvas import Markup, escape, font
from fxprune.inspect.drawing.depth import depth_notes
from fxprune.inspect.drawing.fold import ranges

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def write(
    graph: DependencyGraph,
    path: str | Path,
    *,
    layer: int | None = None,
    group: str | None = None,
    collapse: bool = False,
) -> Path:
    """Write a picture of the groups; ``dot -Tsvg FILE`` renders it.

    Without ``collapse`` this is the neuron graph: a box per value of the FX graph, in it a cell per
    neuron set, coloured by kind, and edges drawn by the dependency rule they follow. With it, each
    group is one box and the edges are data flow. Layers that look alike are drawn once. The legend
    lists the residual branches and blocks that can be removed, and why others cannot.

    Args:
        graph: what :func:`fxprune.discover` found.
        path: the file; replaced as a whole or not at all.
        layer: draw only the groups in the layers of this number (of every stack), with neighbours.
        group: draw only this group, with neighbours.
        collapse: one box per group.

    Returns:
        The path.

    Raises:
        GroupError: there is no such layer or group, or both are asked for.
    """
    wanted = _wanted(graph, layer, group)
    what = f"layer {layer}" if layer is not None else (group or "")
    title = _title(graph, what)
    draw = overview.draw if collapse else neurons.draw
    depth = depth_notes(graph.traced, layer) if group is None else []
    path = Path(path)
    write_text(path, draw(graph, title, wanted, depth))
    return path


def _wanted(graph: DependencyGraph, layer: int | None, group: str | None) -> set[str] | None:
    if layer is not None and group is not None:
        raise GroupError("give a layer or a group to draw, not both")
    if group is not None:
        return {graph[group].name}
    if layer is None:
        return None
    every = (*graph.groups, *graph.frozen)
    found = {g.name for g in every if g.layer is not None and g.layer[1] == layer}
    if not found:
        stacks: dict[str, set[int]] = {}
        for stack, index in (g.layer for g in every if g.layer is not None):
            stacks.setdefault(stack, set()).add(index)
        there = "; ".join(f"{stack} {ranges(numbers)}" for stack, numbers in stacks.items())
        raise GroupError(f"no layer {layer}; the numbered layers are: {there or 'none'}")
    return found


def _title(graph: DependencyGraph, what: str) -> Markup:
    traced = graph.traced
    named = traced.module.named_parameters()
    parameters = sum(p.numel() for n, p in named if traced.canonical(n) not in traced.dropped)
    kinds = Counter(group.kind for group in graph.groups)
    inside = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    totals = f"{parameters:,} parameters; {len(graph.groups)} groups"
    totals += f" ({inside})" if inside else ""
    totals += f"; {len(graph.frozen)} frozen"
    name = type(traced.module).__name__ + (f": {what}" if what else "")
    return Markup(f"<B>{escape(name)}</B><BR/>{font(escape(totals), size=12)}")
