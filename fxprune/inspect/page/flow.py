"""Edges of the picture: a curve with arrows, and the modules that the data runs through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from fxprune.inspect.page.elements import Element, element, text
from fxprune.inspect.page.layout import Edge, Layout, Point

LETTER = 6.9  # pixels of a letter, in the widest of the fonts that may be used
LABEL = 30  # characters of a label
_BULGE = 50


def edge(placed: Layout, pair: Edge, label: str, back: str | None, room: float | None) -> Element:
    """An edge with its label, beside the end where fewer others end.

    Args:
        placed: where everything is.
        pair: the boxes it joins.
        label: the modules on the way.
        back: those on the way back, if data flows back too.
        room: pixels that labels need beside the line, where layers follow one another from left to
            right; None where they do downwards.
    """
    across = room is not None
    ends = Counter(end for joined in placed.routes for end in joined)
    points = list(placed.routes[pair])
    bulge = pair[0] == pair[1] or within(placed, pair, across)
    shown = labels(label, back)
    forward = ends[pair[1]] <= ends[pair[0]]
    near, far = (points[-1], points[-2]) if forward else (points[0], points[1])
    side = 1 if bulge or far[not across] > near[not across] else -1
    if room is not None and not bulge:  # straight beside its label
        bend = near[0] + side * room, near[1]
        points.insert(len(points) - 1 if forward else 1, bend)
    title = f"{pair[0]} to {pair[1]}: {label}" + (f"\nand back: {back}" if back else "")
    line = element("path", d=_curve(points, across=across, bulge=bulge), class_="flow")
    tips = [_tip(points[-1], points[-2], across=across, bulge=bulge)]
    if back:
        tips.append(_tip(points[0], points[1], across=across, bulge=bulge))
    words = _words(shown, near, side, across)
    return element("g", element("title", title), line, *tips, *words)


def labels(label: str, back: str | None) -> list[str]:
    """What stands beside an edge, in one line or two."""
    both = [label] if back is None else [f"\u2192 {label}", f"\u2190 {back}"]
    return [cut(words, LABEL) for words in both if words.strip()]


def cut(words: str, most: int) -> str:
    """Words, cut off where there are too many characters."""
    return words if len(words) <= most else words[: most - 1] + "\u2026"


def within(placed: Layout, pair: Edge, across: bool) -> bool:
    """Whether both boxes stand in the same layer."""
    a, b = (placed.centres[end][not across] for end in pair)
    return a == b


def _words(shown: Sequence[str], near: Point, side: int, across: bool) -> Iterator[Element]:
    for number, words in enumerate(shown):
        if across:
            x, y = near[0] + 10 * side, near[1] + (-4 if number == 0 else 12)
            yield text(words, x, y, "edge", "start" if side > 0 else "end")
        else:
            above = -10 - 12 * (len(shown) - 1)
            yield text(
                words, near[0] + 8, near[1] + (18 if side > 0 else above) + 12 * number, "edge"
            )


def _curve(points: Sequence[Point], *, across: bool, bulge: bool) -> str:
    """A smooth line through the points that leaves and enters layers at right angles."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x, y), (u, v) in pairwise(points):
        if across:
            bend = max(x, u) + _BULGE if bulge else (x + u) / 2
            parts.append(f"C{bend:.1f} {y:.1f} {bend:.1f} {v:.1f} {u:.1f} {v:.1f}")
        else:
            bend = max(y, v) + _BULGE if bulge else (y + v) / 2
            parts.append(f"C{x:.1f} {bend:.1f} {u:.1f} {bend:.1f} {u:.1f} {v:.1f}")
    return "".join(parts)


def _tip(end: Point, before: Point, *, across: bool, bulge: bool) -> Element:
    """The head of an arrow at the end of an edge."""
    back = -8 if before[not across] < end[not across] and not bulge else 8
    x, y = end
    shape = f"l{back} -4v8z" if across else f"l-4 {back}h8z"
    return element("path", d=f"M{x:.1f} {y:.1f}{shape}", class_="tip")
