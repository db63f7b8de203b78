"""What a bench found, as it goes into the JSON: rows of tables, limits, notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benches import sizes


class Record:
    """Collects figures in a dictionary of plain values, pytest-benchmark's ``extra_info``.

    Args:
        into: the dictionary.
        title: what is measured.
        size: see :mod:`benches.sizes`. Limits of ``quick`` are noted and not asserted.
    """

    def __init__(self, into: dict[str, Any], title: str, size: str = sizes.SIZE) -> None:
        self._into, self._size = into, size
        into.update(title=title, size=size, tables={}, limits=[], notes=[])

    def row(self, table: str, cells: Mapping[str, Any]) -> None:
        """Add a row to a table.

        Args:
            table: its heading.
            cells: by column; numbers as they are, the unit in the column's name.
        """
        self._into["tables"].setdefault(table, []).append(dict(cells))
        print(f"{table}: " + ", ".join(f"{name} {shown(value)}" for name, value in cells.items()))

    def note(self, text: str) -> None:
        """Add a sentence below the tables."""
        if text not in self._into["notes"]:
            self._into["notes"].append(text)

    def at_most(self, what: str, measured: float, limit: float) -> None:
        """Note a limit, and assert that it is kept."""
        self._limit(what, measured, limit, "at most", measured <= limit)

    def at_least(self, what: str, measured: float, limit: float) -> None:
        """Note a limit, and assert that it is kept."""
        self._limit(what, measured, limit, "at least", measured >= limit)

    def _limit(self, what: str, measured: float, limit: float, how: str, kept: bool) -> None:
        line = {"what": what, "measured": measured, "limit": limit, "how": how, "kept": kept}
        self._into["limits"].append(line)
        said = f"{what}: {shown(measured)}, {how} {shown(limit)}"
        print(said)
        assert kept or self._size == "quick", said


def shown(value: Any) -> str:
    """A value for people: three digits of a fraction, thousands of a whole number apart."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")
