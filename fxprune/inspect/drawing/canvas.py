"""DOT text: quoting, labels and nested clusters. Knows nothing of groups."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fxprune.inspect.drawing.words import lines

# XML 1.0 has no way to write these, so an HTML-like label cannot hold them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FONT = "Helvetica,Arial,sans-serif"


class Markup(str):
    """An HTML-like label: the text is already escaped."""

    __slots__ = ()


def quote(text: str) -> str:
    """A DOT string that shows ``text`` as it is.

    DOT itself only knows the escaped quote; labels also read other backslash sequences and HTML
    entities. Different texts stay different.
    """
    plain = printable(text).replace("&", "&amp;")
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def escape(text: str) -> Markup:
    """``text`` inside an HTML-like label."""
    return Markup(_plain(text).replace("\n", "<BR/>"))


def wrapped(text: str, width: int = 36) -> Markup:
    """``text`` over several lines, see :func:`fxprune.inspect.drawing.words.lines`."""
    return Markup("<BR/>".join(map(escape, lines(text, width))))


def font(text: str, *, size: int = 0, colour: str = "", bold: bool = False) -> Markup:
    """Markup in another size, colour or weight."""
    if not text:
        return Markup()  # elements without text are a syntax error
    given = (f' POINT-SIZE="{size}"' if size else "") + (f' COLOR="{colour}"' if colour else "")
    inner = f"<B>{text}</B>" if bold else text
    return Markup(f"<FONT{given}>{inner}</FONT>" if given else inner)


def cell(text: str, **attributes: str | int) -> Markup:
    """One cell of a table."""
    given = "".join(f' {key}="{_plain(str(value))}"' for key, value in attributes.items())
    return Markup(f"<TD{given}>{text}</TD>")


def table(rows: Iterable[Iterable[str]], **attributes: str | int) -> Markup:
    """A table of rows of cells."""
    given = "".join(f' {key}="{_plain(str(value))}"' for key, value in attributes.items())
    inside = "".join(f"<TR>{''.join(row)}</TR>" for row in rows)
    return Markup(f"<TABLE{given}>{inside}</TABLE>")


class Canvas:
    """A directed graph under construction.

    Args:
        title: markup above the picture.
        direction: ``TB`` or ``LR``.
    """

    def __init__(self, title: Markup, direction: str = "TB") -> None:
        self._lines: list[str] = []
        self._depth = 1
        self._clusters = 0
        self._set("graph", label=title, labelloc="t", fontname=_FONT, fontsize=18)
        self._set("graph", rankdir=direction, nodesep=0.25, ranksep=0.4, pad=0.3, newrank="true")
        self._set("node", shape="none", margin=0, fontname=_FONT, fontsize=11)
        self._set("edge", fontname=_FONT, fontsize=10, arrowsize=0.7)

    def node(self, name: str, label: str, **attributes: str | float) -> None:
        """Add a node."""
        self._line(quote(name) + _attributes({"label": label, **attributes}))

    def edge(
        self, tail: tuple[str, str | None], head: tuple[str, str | None], **attributes: str | float
    ) -> None:
        """Add an edge between nodes, each with a port or None."""
        self._line(f"{_end(tail)} -> {_end(head)}{_attributes(attributes)}")

    @contextmanager
    def cluster(self, label: str, **attributes: str | float) -> Iterator[None]:
        """Whatever is added inside is drawn in one box."""
        self._line(f"subgraph cluster_{self._clusters} {{")
        self._clusters += 1
        self._depth += 1
        self._set("graph", label=label, labeljust="l", fontsize=12, **attributes)
        yield
        self._depth -= 1
        self._line("}")

    def text(self) -> str:
        """The whole file."""
        return "\n".join(("digraph fxprune {", *self._lines, "}", ""))

    def _set(self, what: str, **attributes: str | float) -> None:
        self._line(what + _attributes(attributes))

    def _line(self, text: str) -> None:
        self._lines.append("  " * self._depth + text)


def printable(text: str) -> str:
    """``text`` without what XML cannot write."""
    return _FORBIDDEN.sub("\ufffd", text.replace("\r", ""))


def _plain(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _end(end: tuple[str, str | None]) -> str:
    name, port = end
    return quote(name) + (f":{quote(port)}" if port else "")


def _attributes(attributes: dict[str, str | float]) -> str:
    inside = ", ".join(f"{key}={_value(value)}" for key, value in attributes.items())
    return f" [{inside}]" if inside else ""


def _value(value: str | float) -> str:
    if isinstance(value, Markup):
        return f"<{value}>"
    return quote(value) if isinstance(value, str) else str(value)
