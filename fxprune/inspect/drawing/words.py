"""Names made short enough for a picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fxprune.groups.group import Group

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_MOST_REASONS = 8


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def lines(text: str, width: int = 36) -> list[str]:
    """``text`` over several lines, each a little over ``width`` at most where names allow.

    Names break after a dot, and names longer than a line after an underscore too.
    """
    found = [""]
    for word in re.split(r"(?<=\s)", text.strip()):
        for piece in re.split(r"(?<=\.)(?=\w)" if len(word) <= width else r"(?<=[._])(?=\w)", word):
            if found[-1] and len(found[-1]) + len(piece.rstrip()) > width:
                found.append("")
            found[-1] += piece
    return [line.rstrip() for line in found]


def unit(name: str) -> str:
    """The last part of a group's name: what its units are."""
    return name.rpartition(":")[2]


def short_module(path: str) -> str:
    """The last part of a module's path that is not a number, and the numbers after it."""
    parts = path.split(".")
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[start:])


def without_numbers(names: Iterable[str]) -> list[str]:
    """Dotted names with numbers left open, each once."""
    return list(dict.fromkeys(_NUMBER.sub("*", name) for name in names))


def common_path(paths: Sequence[str]) -> str:
    """The innermost place that all dotted paths are in or at."""
    found: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return ".".join(found)


def span(numbers: Sequence[int]) -> str:
    """The smallest and the largest number."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def reasons(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """Frozen groups by reason: (their names, why)."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group.reason is not None:
            found.setdefault(group.reason, []).append(group.name)
    notes = [(shortened(names), reason) for reason, names in found.items()]
    left = len(notes) - _MOST_REASONS
    return [*notes[:_MOST_REASONS], *([(f"{left} more reasons", "")] if left > 0 else [])]
