"""The neuron graph: boxes for FX values, and in them a cell per neuron set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence, Set
from typing import TYPE_CHECKING

from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.canvas import Canvas, Markup
from fxprune.inspect.drawing.labels import folded_label, tile_label
from fxprune.inspect.drawing.scene import Scene, scene
from fxprune.inspect.drawing.style import FRAME, LINES, Attributes, legend, look_of
from fxprune.inspect.drawing.tiles import Tile, shown, tiles
from fxprune.inspect.drawing.wires import End, joined, wires
from fxprune.inspect.drawing.words import reasons

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_CROWD = 3  # a frame around fewer boxes is not worth its space


def draw(
    graph: DependencyGraph,
    title: Markup,
    wanted: Collection[str] | None,
    depth: Sequence[tuple[str, str]],
) -> str:
    """The neuron sets of the wanted groups (of all, for None) and their neighbours, as DOT."""
    return _Picture(graph, scene(graph, wanted)).draw(Canvas(title), depth)


class _Picture:
    def __init__(self, graph: DependencyGraph, part: Scene) -> None:
        self.graph = graph
        self.scene = part
        self.wires = wires(graph.network, part.focus)
        visible = [value for value in part.values.values() if value.name not in part.fold]
        self.tiles = tiles(visible, self.wires, part.focus)
        self.frames = _frames(self.tiles)
        self.home = {value.name: tile for tile in self.tiles for value in tile}
        self.order = {name: number for number, name in enumerate(part.values)}

    def draw(self, canvas: Canvas, depth: Sequence[tuple[str, str]]) -> str:
        edges = joined(self.wires, self.end)
        edges |= self._gaps({tail[0] for tail, _, _ in edges}, {head[0] for _, head, _ in edges})
        asked = {group for _, group in self.scene.focus}
        names = dict.fromkeys(name for tile in self.tiles for name in shown(tile))
        groups = [self.graph[name] for name in names if name in asked]
        context = len(groups) < len(names)
        lines = {line for _, _, line in edges}
        looks = {look_of(g) for g in groups}
        legend(canvas, looks, lines, reasons(groups), depth, context=context)
        self._frame(canvas, self.tiles, "", 0)
        for number, run in enumerate(self.scene.folded):
            canvas.node(_folded(number), folded_label(run, self.scene.like[number]))
        for (tail, head, line), rules in edges.items():
            tip = ", ".join(sorted(rules)) or "no dependency"
            free: Attributes = {"constraint": "false"} if self._backwards(tail, head) else {}
            canvas.edge(tail, head, **LINES[line][1], **free, tooltip=tip)
        return canvas.text()

    def end(self, neurons: NeuronSet) -> End | None:
        """Where a neuron set is drawn."""
        name, group = neurons
        if name not in self.scene.values:
            return None
        if name in self.scene.fold:
            return _folded(self.scene.fold[name]), None
        tile = self.home[name]
        cells = shown(tile)
        return tile[0].name, f"c{cells.index(group)}" if group in cells else None

    def _gaps(self, tails: Set[str], heads: Set[str]) -> dict[tuple[End, End, str], frozenset[str]]:
        """Where data leaves what was asked for and comes back: keeps the picture in order."""
        left: dict[str, str] = {}
        gaps: dict[tuple[End, End, str], frozenset[str]] = {}
        for tile in self.tiles:
            name = tile[0].name
            for group in shown(tile):
                if (name, group) in self.scene.focus:
                    continue
                if name in tails and group in left:
                    gaps[(left.pop(group), None), (name, None), "gap"] = frozenset()
                if name in heads:
                    left[group] = name
        return gaps

    def _backwards(self, tail: End, head: End) -> bool:
        """Whether an edge enters a weight that is used before the edge's tail, as a tied one is."""
        tile = self.home.get(head[0], ())
        first = min(
            (
                self.order.get(user, len(self.order))
                for value in tile
                if value.parameter
                for group in value.groups
                for user, _ in self.graph.network.succ[value.name, group]
            ),
            default=len(self.order),
        )
        return first < self.order.get(tail[0], 0)

    def _frame(self, canvas: Canvas, inner: Sequence[Tile], outer: str, depth: int) -> None:
        """Draw the boxes that lie directly in a frame, then the frames in it."""
        parts: dict[str, list[Tile]] = {}
        for tile in inner:
            value = tile[0]
            frames = self.frames[value.name]
            if len(frames) > depth:
                parts.setdefault(frames[depth], []).append(tile)
            else:
                label = tile_label(self.graph, tile, self.scene.focus)
                tip = " ".join(part for v in tile for part in (v.tensor or v.name, v.source))
                canvas.node(value.name, label, tooltip=tip.strip())
        for part, members in parts.items():
            with canvas.cluster(part.removeprefix(f"{outer}."), **FRAME[min(depth, 1)]):
                self._frame(canvas, members, part, depth + 1)


def _folded(number: int) -> str:
    return f"(folded {number})"


def _frames(found: Sequence[Tile]) -> dict[str, tuple[str, ...]]:
    """Box to the frames around it: its layer and part of it, or its module.

    A module around layers or other modules would stretch over the whole picture and has none.
    """
    wished = {tile[0].name: tile[0].frames for tile in found}
    crowd = Counter(frames[: i + 1] for frames in wished.values() for i in range(len(frames)))
    places = [frames[0].split(".") for frames in wished.values() if frames]
    wide = {".".join(place[:i]) for place in places for i in range(len(place))}
    layers = {tile[0].name for tile in found if tile[0].layer is not None}
    return {
        name: tuple(
            part
            for i, part in enumerate(frames)
            if (i == 0 and name in layers)
            or (part not in wide and crowd[frames[: i + 1]] >= _CROWD)
        )
        for name, frames in wished.items()
    }
