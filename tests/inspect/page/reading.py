"""Reads pages back: their pictures as XML, their tables as text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "link", "img"}


class _Balanced(HTMLParser):
    """Collects tags and fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: list[list[list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def parsed(page: str) -> _Balanced:
    """The page, whose tags must nest."""
    parser = _Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def pictures(page: str) -> list[ET.Element]:
    """Every SVG on the page, each well-formed XML by itself."""
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def titles(picture: ET.Element) -> list[str]:
    """All that its tooltips say."""
    return [title.text or "" for title in picture.iter(f"{SVG}title")]


def words(picture: ET.Element) -> list[str]:
    """Every line of text in it."""
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def check_alone(page: str) -> None:
    """Nothing on the page asks for anything outside of it, and nothing runs."""
    rest = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    for word in ("http:", "https:", "src=", "url(", "@import", "href=", "<link", "<script"):
        assert word not in rest, word
    assert not [name for name, _ in parsed(page).attributes if name.startswith("on")]
