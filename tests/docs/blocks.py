"""The fenced blocks of the pages: what language they are in and how they are marked."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
LISTED = ROOT / "docs" / "commands.md"

_MARK = re.compile(r"<!--\s*(fast|slow)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: where its text begins, from 1.
        language: as written behind the fence.
        mark: ``fast`` or ``slow`` if a comment before the fence says so, else empty.
        source: the text.
    """

    line: int
    language: str
    mark: str
    source: str

    @property
    def runs(self) -> bool:
        """Whether the tests run it: Python unless marked slow, commands if marked fast."""
        if self.language == "python":
            return self.mark != "slow"
        return self.language == "sh" and self.mark == "fast"

    @property
    def commands(self) -> list[str]:
        """What is to be run, a line each: commands, or the first line of a program."""
        if self.language == "python":
            return self.source.splitlines()[:1]
        if self.language != "sh":
            return []
        joined = re.sub(r"\s*\\\n\s*", " ", self.source)
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]


def name_of(page: Path) -> str:
    """Its path from the top of the repository."""
    return page.resolve().relative_to(ROOT).as_posix()


@functools.cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The blocks of a page, in order, those in lists included."""
    found, mark = [], ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            marked = _MARK.search(token.content)
            mark = marked[1] if marked else ""
            continue
        if token.type == "fence" and token.map is not None:
            found.append(Block(token.map[0] + 2, token.info, mark, token.content))
        mark = ""
    return tuple(found)


def listed() -> dict[tuple[str, str], str]:
    """(page, command) -> when it was last run, from the table in docs/commands.md."""
    row = re.compile(r"^\| (\S+\.md) \| `([^`]*)` \| ([^|]*) \| [^|]* \|$", re.MULTILINE)
    rows = row.findall(LISTED.read_text(encoding="utf-8"))
    return {(page, command): date for page, command, date in rows}
