"""Bars: the widths of layers, and one figure before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fxprune.inspect.page.elements import Element, element, rect, svg, table, text
from fxprune.inspect.page.widths import Panel, Width

_HIGH, _TOP, _FOOT, _LEFT = 76, 18, 20, 52
_FILLED = 0.76  # share of its place that a bar takes
_WIDE = 860  # of all bars of a panel, where there are many


def layers(panel: Panel, rows: Mapping[int, Width], gone: Mapping[int, Sequence[str]]) -> Element:
    """A bar per layer: what was there in outline, what is left filled.

    Args:
        panel: the stack and the group.
        rows: by number of layer.
        gone: names of what was removed whole, by number of layer.
    """
    numbers = sorted({*rows, *gone})
    pitch = max(12.0, min(36.0, _WIDE / len(numbers)))
    most = max(row.before for row in rows.values())
    stack, name = panel
    bars = []
    for place, number in enumerate(numbers):
        x = _LEFT + place * pitch
        bars.append(_bar(rows.get(number), number, x, pitch, most, gone.get(number, ())))
        if place % max(1, round(24 / pitch)) == 0:
            middle = x + pitch * _FILLED / 2
            bars.append(text(str(number), middle, _TOP + _HIGH + 14, "tick", "middle"))
    base = _TOP + _HIGH
    wide = _LEFT + pitch * len(numbers) + 8
    axis = [
        text(f"{most:,}", _LEFT - 6, _TOP + 9, "tick", "end"),
        text("0", _LEFT - 6, base, "tick", "end"),
        element("path", d=f"M{_LEFT - 2} {base}H{wide:.0f}", class_="axis"),
    ]
    kind = next(iter(rows.values())).kind
    label = text(f"{name} ({kind}) by layer of {stack}", 4, 11, "label")
    title = f"Units of {name} in each layer of {stack}"
    # The label is longer than the bars of a model with few layers.
    least = 8 + 7.2 * len(f"{name} ({kind}) by layer of {stack}")
    return svg(title, max(wide, least), base + _FOOT, label, *axis, *bars)


def _bar(
    row: Width | None, number: int, x: float, pitch: float, most: int, gone: Sequence[str]
) -> Element:
    wide, base = pitch * _FILLED, _TOP + _HIGH
    if row is None:
        title = f"layer {number}: " + (", ".join(gone) + " removed" if gone else "nothing")
        cross = f"M{x + wide / 2 - 3:.1f} {base - 12:.1f}l6 8m0 -8l-6 8"
        return element("g", element("title", title), element("path", d=cross, class_="gone"))
    before, after = (_HIGH * units / most for units in (row.before, row.after))
    said = f"{row.before:,}" if row.before == row.after else f"{row.before:,} to {row.after:,}"
    return element(
        "g",
        element("title", f"layer {number}: {said} units"),
        rect(x, base - before, wide, before, class_="before"),
        rect(x, base - after, wide, after, class_="after"),
    )


def layer_table(
    found: Mapping[Panel, Mapping[int, Width]], gone: Mapping[str, Mapping[int, Sequence[str]]]
) -> Iterable[Element]:
    """The same as tables, one for each stack."""
    for stack in dict.fromkeys(stack for stack, _ in found):
        columns = {name: rows for (where, name), rows in found.items() if where == stack}
        whole = gone.get(stack, {})
        numbers = sorted({*whole, *(n for rows in columns.values() for n in rows)})
        cells = [
            [str(n), *(_said(rows.get(n), bool(whole.get(n))) for rows in columns.values())]
            for n in numbers
        ]
        yield table(f"Units by layer of {stack}", ["layer ", *(f"{c} " for c in columns)], cells)


def _said(row: Width | None, gone: bool) -> str:
    if row is None:
        return "removed" if gone else ""
    return f"{row.before:,}" + (f" \u2192 {row.after:,}" if row.after != row.before else "")


class Figure(NamedTuple):
    """A figure of one model.

    Attributes:
        name: of the model.
        number: the figure, 0 or more.
        words: the same as it is read.
        stderr: its standard error, drawn to both sides of the end of the bar.
    """

    name: str
    number: float
    words: str
    stderr: float | None = None


def models(label: str, figures: Sequence[Figure]) -> Element:
    """One figure of several models, as bars from 0; the first is the one to compare with."""
    most = max(each.number + (each.stderr or 0) for each in figures) or 1.0
    left = max(96.0, 16 + 6.2 * max(len(each.name) for each in figures))
    high, wide = 24, 260
    rows: list[Element] = [text(label, 4, 12, "label")]
    for place, each in enumerate(figures):
        y = 20 + place * high
        bar, middle = left + wide * each.number / most, y + high / 2 - 1
        look = "before" if place == 0 and len(figures) > 1 else "after"
        rows += [
            text(each.name, left - 8, y + 14, "tick", "end"),
            rect(left, y + 3, bar - left, high - 8, class_=look),
        ]
        if each.stderr is not None:
            apart = wide * each.stderr / most
            line = f"M{max(left, bar - apart):.1f} {middle:.1f}H{bar + apart:.1f}"
            rows.append(element("path", d=line, class_="error"))
            bar += apart
        rows.append(text(each.words, bar + 6, y + 14, "fact"))
    said = ", ".join(f"{each.name} {each.words}" for each in figures)
    size = max(left + wide + 110, 8 + 7.2 * len(label)), 24 + high * len(figures)
    return svg(f"{label}: {said}", *size, *rows)
