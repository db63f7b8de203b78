"""The collapsed dependency graph as SVG: the boxes and flows of the DOT picture, laid out here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fxprune.groups.drawing.boxes import Box, boxes, chosen, flows
from fxprune.groups.drawing.cards import Facts, facts
from fxprune.groups.drawing.overview import edges, has_hub, paired
from fxprune.groups.drawing.style import COLOURS, FROZEN, MEANING
from fxprune.groups.drawing.words import lines
from fxprune.groups.kinds import KINDS
from fxprune.html.elements import Element, element, rect, svg, text
from fxprune.html.layout import Edge, Layout, Point, layout

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

# Pixels. A letter is taken to be as wide as in the widest of the fonts that may be used.
_WIDTH, _LINE, _HEAD, _PAD, _LETTER = 290, 15, 22, 8, 6.9
_CHARACTERS = int((_WIDTH - 2 * _PAD) / _LETTER)
_MOST_LINES = 4  # of a long name or reason; the tooltip has it whole
_LABEL = 30  # characters of the label of an edge
_MARGIN = 12
_PORT = 30  # from edge to edge along the side of a box


@dataclass(frozen=True)
class _Card:
    facts: Facts
    body: tuple[tuple[str, str], ...]  # lines with their classes
    title: str

    @property
    def height(self) -> float:
        return _HEAD + _PAD + _LINE * len(self.body) + _PAD / 2


def picture(graph: DependencyGraph) -> Element:
    """A box per group and an edge per flow of data, layers that look alike drawn once."""
    flow = flows(graph)
    shown, _ = chosen(graph, flow, None)
    found = boxes(shown, flow)
    across = has_hub(found, flow)
    drawn = [(pair, label, back) for pair, label, back in paired(edges(found, flow, None))]
    cards = {box.name: _card(graph, box) for box in found}
    sizes = _sizes(cards, [pair for pair, _, _ in drawn], across=across)
    longest = max((len(t) for _, *both in drawn for t in _labels(*both)), default=0)
    gap = 70 + longest * _LETTER if across else 76.0
    placed = layout(sizes, [pair for pair, _, _ in drawn], across=across, gap=gap)
    loops = any(a == b or _within(placed, (a, b), across) for (a, b), _, _ in drawn)
    extra = (_LABEL * _LETTER + 60) if loops else 0.0
    inner = [
        *(_edge(placed, pair, label, back, across=across) for pair, label, back in drawn),
        *(_box(cards[name], placed.centres[name], sizes[name]) for name in cards),
    ]
    wide = placed.width + 2 * _MARGIN + (extra if across else longest * _LETTER)
    high = placed.height + 2 * _MARGIN + (0.0 if across else extra / 3)
    group = element("g", *inner, transform=f"translate({_MARGIN} {_MARGIN})")
    name = type(graph.traced.module).__name__
    title = f"Groups of {name} and the flow of data between them"
    return svg(title, wide, high, group)


def legend(graph: DependencyGraph) -> Element:
    """The colours of the kinds that occur."""
    kinds = {group.kind for group in graph.groups} | ({FROZEN} if graph.frozen else set())
    return element(
        "ul",
        *(
            element(
                "li",
                element("span", class_="chip", style=f"background:{COLOURS[kind][0]}"),
                f"{kind}: {MEANING[kind]}",
            )
            for kind in (*KINDS, FROZEN)
            if kind in kinds
        ),
        class_="legend",
    )


def _card(graph: DependencyGraph, box: Box) -> _Card:
    said = facts(graph, box)
    body = [
        *((line, "name") for line in _fitted(said.name)),
        *((line, "fact") for line in _fitted(said.counts)),
        *((line, "more") for line in _fitted(said.more)),
    ]
    names = [group.name for group in box.groups]
    more = f"\n... and {len(names) - 60} more" if len(names) > 60 else ""
    title = "\n".join([f"{said.kind}: {said.counts}", said.more, *names[:60]]) + more
    return _Card(said, tuple(body), title)


def _fitted(words: str) -> Iterator[str]:
    """Lines that are no wider than a box."""
    found = lines(words, _CHARACTERS)
    for number, line in enumerate(found[:_MOST_LINES]):
        cut = len(line) > _CHARACTERS or (number == _MOST_LINES - 1 < len(found) - 1)
        yield line[: _CHARACTERS - 1] + "\u2026" if cut else line


def _sizes(
    cards: dict[str, _Card], joined: Sequence[Edge], *, across: bool
) -> dict[str, tuple[float, float]]:
    """Boxes as high (or wide) as their edges need."""
    ends = Counter(end for pair in joined for end in pair)
    return {
        name: (
            float(_WIDTH),
            max(card.height, _PORT * (ends[name] + 1.0) if across else 0.0),
        )
        for name, card in cards.items()
    }


def _box(card: _Card, centre: Point, size: tuple[float, float]) -> Element:
    fill, ink = COLOURS[card.facts.look]
    x, y = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    head = element(
        "text",
        element("tspan", _cut(card.facts.unit, 18), class_="unit"),
        f"  {card.facts.kind}",
        x=x + _PAD,
        y=y + _HEAD - 7,
        style=f"fill:{ink}",
    )
    first = y + _HEAD + _LINE
    return element(
        "g",
        element("title", card.title),
        rect(x, y, *size, class_="card", rx=4),
        element(
            "path",
            d=f"M{x:.1f} {y + _HEAD:.1f}v{4 - _HEAD}q0 -4 4 -4h{size[0] - 8:.1f}q4 0 4 4"
            f"v{_HEAD - 4}z",
            style=f"fill:{fill}",
        ),
        head,
        *(
            text(line, x + _PAD, first + _LINE * number, class_)
            for number, (line, class_) in enumerate(card.body)
        ),
    )


def _edge(placed: Layout, pair: Edge, label: str, back: str | None, *, across: bool) -> Element:
    points = placed.routes[pair]
    title = f"{pair[0]} to {pair[1]}: {label}" + (f"\nand back: {back}" if back else "")
    bulge = pair[0] == pair[1] or _within(placed, pair, across)
    line = element(
        "path",
        d=_curve(points, across=across, bulge=bulge),
        class_="flow",
    )
    tips = [_tip(points[-1], points[-2], across=across, bulge=bulge)]
    if back:
        tips.append(_tip(points[0], points[1], across=across, bulge=bulge))
    ends = Counter(end for edge in placed.routes for end in edge)
    near = points[-1] if ends[pair[1]] <= ends[pair[0]] else points[0]
    far = points[0] if near == points[-1] else points[-1]
    return element(
        "g", element("title", title), line, *tips, *_words(near, far, label, back, across)
    )


def _words(
    near: Point, far: Point, label: str, back: str | None, across: bool
) -> Iterator[Element]:
    """The label, beside the end of the edge where fewer others end."""
    side = 1 if (far[0] > near[0] if across else far[1] > near[1]) else -1
    for number, words in enumerate(_labels(label, back)):
        if across:
            x, y = near[0] + 10 * side, near[1] + (-4 if number == 0 else 12)
            yield text(words, x, y, "edge", "start" if side > 0 else "end")
        else:
            y = near[1] + (18 if side > 0 else -10 - 12 * (back is not None)) + 12 * number
            yield text(words, near[0] + 8, y, "edge", "start")


def _labels(label: str, back: str | None) -> list[str]:
    both = [label] if back is None else [f"\u2192 {label}", f"\u2190 {back}"]
    return [_cut(words, _LABEL) for words in both if words.strip()]


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "\u2026"


def _within(placed: Layout, pair: Edge, across: bool) -> bool:
    """Whether both boxes stand in the same layer."""
    a, b = (placed.centres[end][0 if across else 1] for end in pair)
    return a == b


def _curve(points: Sequence[Point], *, across: bool, bulge: bool) -> str:
    """A smooth line through the points that leaves and enters layers at right angles."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (u, v) in pairwise(points):
        if bulge and across:
            bend = max(x, u) + 50
            parts.append(f"C{bend:.1f} {y:.1f} {bend:.1f} {v:.1f} {u:.1f} {v:.1f}")
        elif bulge:
            bend = max(y, v) + 50
            parts.append(f"C{x:.1f} {bend:.1f} {u:.1f} {bend:.1f} {u:.1f} {v:.1f}")
        elif across:
            middle = (x + u) / 2
            parts.append(f"C{middle:.1f} {y:.1f} {middle:.1f} {v:.1f} {u:.1f} {v:.1f}")
        else:
            middle = (y + v) / 2
            parts.append(f"C{x:.1f} {middle:.1f} {u:.1f} {middle:.1f} {u:.1f} {v:.1f}")
    return "".join(parts)


def _tip(end: Point, before: Point, *, across: bool, bulge: bool) -> Element:
    """The head of an arrow at the end of an edge."""
    axis = 0 if across else 1
    back = -8 if before[axis] < end[axis] and not bulge else 8
    x, y = end
    shape = f"l{back} -4v8z" if across else f"l-4 {back}h8z"
    return element("path", d=f"M{x:.1f} {y:.1f}{shape}", class_="tip")
