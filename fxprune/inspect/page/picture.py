"""The collapsed dependency graph as SVG: the boxes and flows of the DOT picture, laid out here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.groups.kinds import KINDS
from fxprune.inspect.drawing.boxes import Box, boxes, chosen, flows
from fxprune.inspect.drawing.cards import Facts, facts
from fxprune.inspect.drawing.overview import edges, has_hub, paired
from fxprune.inspect.drawing.style import COLOURS, FROZEN, MEANING
from fxprune.inspect.drawing.words import lines
from fxprune.inspect.page.elements import Element, element, rect, svg, text
from fxprune.inspect.page.flow import LABEL, LETTER, cut, edge, labels, within
from fxprune.inspect.page.layout import Edge, Point, layout

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_WIDTH, _LINE, _HEAD, _PAD = 310, 15, 22, 8  # pixels
_CHARACTERS = int((_WIDTH - 2 * _PAD) / LETTER)
_MOST_LINES = 4  # of a long name or reason; the tooltip has it whole
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
    longest = max((len(t) for _, label, back in drawn for t in labels(label, back)), default=0)
    room = 16 + longest * LETTER if across else None
    gap = 76.0 if room is None else room + 60
    placed = layout(sizes, [pair for pair, _, _ in drawn], across=across, gap=gap)
    loops = any(a == b or within(placed, (a, b), across) for (a, b), _, _ in drawn)
    extra = (LABEL * LETTER + 60) if loops else 0.0
    inner = [
        *(edge(placed, pair, label, back, room) for pair, label, back in drawn),
        *(_box(cards[name], placed.centres[name], sizes[name]) for name in cards),
    ]
    wide = placed.width + 2 * _MARGIN + (extra if across else longest * LETTER)
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
        element("tspan", cut(card.facts.unit, 18), class_="unit"),
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
