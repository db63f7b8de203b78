"""The whole model, collapsed: a box per group, layers that look alike drawn once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING

from fxprune.inspect.drawing.boxes import Box, Flows, boxes, chosen, flows
from fxprune.inspect.drawing.canvas import Canvas, Markup
from fxprune.inspect.drawing.cards import card
from fxprune.inspect.drawing.fold import Layer, ranges
from fxprune.inspect.drawing.style import FRAME, LINES, Attributes, legend, look_of
from fxprune.inspect.drawing.words import reasons, short_module, shortened

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

Edges = dict[tuple[str, str], str]
"""From one box to another: the modules in between."""


def draw(
    graph: DependencyGraph,
    title: Markup,
    wanted: Set[str] | None,
    depth: Sequence[tuple[str, str]],
) -> str:
    """The wanted groups (all for None) and those they exchange data with, as DOT."""
    flow = flows(graph)
    shown, idle = chosen(graph, flow, wanted)
    found = boxes(shown, flow)
    canvas = Canvas(title, "LR" if has_hub(found, flow) else "TB")
    joined = edges(found, flow, wanted)
    looks = {look_of(group) for group in (*shown, *idle)}
    legend(canvas, looks, {"all"} if joined else set(), reasons(idle), depth)
    for stack, members in _stacks(found).items():
        if stack:
            with canvas.cluster(stack, **FRAME[0]):
                _layers(canvas, graph, members)
        else:
            _layers(canvas, graph, members)
    for (tail, head), label, back in paired(joined):
        both: Attributes = {"dir": "both", "arrowtail": "vee"} if back else {}
        text = f"\u2192 {label}\n\u2190 {back}" if back else label
        canvas.edge((tail, None), (head, None), **LINES["all"][1], **both, label=text)
    return canvas.text()


def paired(joined: Edges) -> Iterator[tuple[tuple[str, str], str, str | None]]:
    """Each edge once, with the label of the one that leads back if there is one."""
    done: set[tuple[str, str]] = set()
    for (a, b), label in joined.items():
        if (b, a) not in done:
            done.add((a, b))
            yield (a, b), label, joined.get((b, a)) if a != b else None


def _stacks(found: Iterable[Box]) -> dict[str, list[Box]]:
    """Boxes by stack; what all layers of a stack share goes with it."""
    known = {box.layers[0][0] for box in found if box.layers}
    by_stack: dict[str, list[Box]] = {}
    for box in found:
        place = box.name.rpartition(":")[0]
        stack = box.layers[0][0] if box.layers else (place if place in known else "")
        by_stack.setdefault(stack, []).append(box)
    return by_stack


def _layers(canvas: Canvas, graph: DependencyGraph, members: Iterable[Box]) -> None:
    by_layers: dict[tuple[Layer, ...], list[Box]] = {}
    for box in members:
        by_layers.setdefault(box.layers, []).append(box)
    for layers, inner in by_layers.items():
        if not layers:
            _boxes(canvas, graph, inner)
            continue
        numbers = ranges(index for _, index in layers)
        alike = f": {len(layers)} alike, drawn once" if len(layers) > 1 else ""
        name = f"layer{'s' if len(layers) > 1 else ''} {numbers}{alike}"
        with canvas.cluster(name, **FRAME[1]):
            _boxes(canvas, graph, inner)


def _boxes(canvas: Canvas, graph: DependencyGraph, inner: Iterable[Box]) -> None:
    for box in inner:
        canvas.node(box.name, card(graph, box), tooltip=box.name)


def edges(found: Sequence[Box], flow: Flows, wanted: Set[str] | None) -> Edges:
    """Flows between boxes, and the modules they run through."""
    home = {group.name: box for box in found for group in box.groups}
    joined: dict[tuple[str, str], dict[str, None]] = {}
    for (a, b), modules in flow.items():
        touched = wanted is None or a in wanted or b in wanted
        if touched and a in home and b in home:
            seen = joined.setdefault((home[a].name, home[b].name), {})
            seen.update(dict.fromkeys(short_module(module) for module in modules if module))
    return {pair: shortened(list(seen), 4) for pair, seen in joined.items()}


def has_hub(found: Sequence[Box], flow: Flows) -> bool:
    """Whether one group takes part in most of the flow, as a residual stream does."""
    return any(
        2 * sum(box.name in pair for pair in flow) > len(flow) for box in found if not box.layers
    )
