"""HTML and SVG as trees of elements: whatever text is put in is escaped when they are written."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from fxprune.inspect.drawing.canvas import printable

Element = ET.Element
Child = Element | str | None
Value = str | int | float | None

SVG = "http://www.w3.org/2000/svg"


def element(tag: str, *children: Child, **attributes: Value) -> Element:
    """An element.

    Args:
        tag: its name.
        children: elements, or text that is shown as it is; None is left out.
        attributes: as keywords, ``class_`` for ``class`` and ``stroke_width`` for
            ``stroke-width``; numbers are rounded to tenths, None is left out.
    """
    given = {_name(key): _value(v) for key, v in attributes.items() if v is not None}
    made = ET.Element(tag, given)
    last: Element | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            text = printable(child)
            if last is None:
                made.text = (made.text or "") + text
            else:
                last.tail = (last.tail or "") + text
        else:
            made.append(child)
            last = child
    return made


def svg(title: str, width: float, height: float, *children: Child) -> Element:
    """A picture of that size in pixels, with a title that stands for it in words."""
    return element(
        "svg",
        element("title", title),
        *children,
        xmlns=SVG,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
    )


def text(
    words: str, x: float, y: float, class_: str | None = None, anchor: str | None = None
) -> Element:
    """One line of text in a picture; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return element("text", words, x=x, y=y, class_=class_, text_anchor=anchor)


def rect(
    x: float, y: float, width: float, height: float, *children: Child, **attributes: Value
) -> Element:
    """A rectangle in a picture."""
    return element("rect", *children, x=x, y=y, width=width, height=height, **attributes)


def table(caption: str | None, heads: Iterable[str], rows: Iterable[Iterable[Child]]) -> Element:
    """A table with headers; a column whose head ends in a space is of numbers."""
    heads = list(heads)
    numeric = ["number" if head.endswith(" ") else None for head in heads]
    named = zip(heads, numeric, strict=True)
    return element(
        "table",
        element("caption", caption) if caption else None,
        element(
            "thead",
            element("tr", *(element("th", h.strip(), scope="col", class_=c) for h, c in named)),
        ),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    *(element("td", x, class_=c) for x, c in zip(row, numeric, strict=True)),
                )
                for row in rows
            ),
        ),
    )


def document(title: str, style: str, *body: Child) -> str:
    """A whole page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    page = element("html", head, element("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{ET.tostring(page, encoding='unicode', method='html')}\n"


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: Value) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
