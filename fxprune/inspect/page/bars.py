"""Bars: the widths of layers, and one figure before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def pair(label: str, figures: Sequence[tuple[str, float, str]]) -> Element:
    """One figure of several models, as bars from 0.

    Args:
        label: what it is.
        figures: whose it is, the number, and the number in words.
    """
    most = max(number for _, number, _ in figures) or 1.0
    left, high, wide = 96, 24, 260
    rows: list[Element] = [text(label, 4, 12, "label")]
    for place, (name, number, words) in enumerate(figures):
        y = 20 + place * high
        bar = wide * number / most
        look = "before" if place == 0 and len(figures) > 1 else "after"
        rows += [
            text(name, left - 8, y + 14, "tick", "end"),
            rect(left, y + 3, bar, high - 8, class_=look),
            text(words, left + bar + 6, y + 14, "fact"),
        ]
    said = ", ".join(f"{name} {words}" for name, _, words in figures)
    return svg(f"{label}: {said}", left + wide + 110, 24 + high * len(figures), *rows)
