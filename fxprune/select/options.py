"""Options of a selection that can be checked, and put into one form, before there is a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from fxprune.errors import SelectionError
from fxprune.groups.kinds import KINDS
from fxprune.select.budget import fraction, percentage


def check_multiple(multiple_of: int | Mapping[str, int]) -> None:
    """Refuse what the number of units that stay cannot be a multiple of.

    Raises:
        SelectionError: a number below 1, or a kind that there is not.
    """
    by_kind = multiple_of if isinstance(multiple_of, Mapping) else {"mlp": multiple_of}
    for kind, multiple in by_kind.items():
        if kind not in KINDS:
            raise SelectionError(f"multiple_of: unknown kind {kind!r}: take {', '.join(KINDS)}")
        if not isinstance(multiple, int) or multiple < 1:
            raise SelectionError(f"multiple_of={multiple}: a whole number, at least 1")


def check_least(min_kept: int | Mapping[str, int]) -> None:
    """Refuse what no number of units that stay can be.

    Raises:
        SelectionError: not a whole number, or below 1.
    """
    for number in min_kept.values() if isinstance(min_kept, Mapping) else (min_kept,):
        check_number("min_kept", 0 if number is None else number, 1)


def check_number(name: str, value: Any, least: int) -> None:
    """Refuse what is neither None nor a whole number that is large enough.

    Raises:
        SelectionError: it is not.
    """
    if value is not None and (type(value) is not int or value < least):
        raise SelectionError(f"{name}={value!r}: a whole number, at least {least}")


def at_most(max_ratio: Any) -> Any:
    """The largest share of units that may go, percentages as fractions; None for no limit.

    Raises:
        SelectionError: a share is outside [0, 1].
    """
    if isinstance(max_ratio, Mapping):
        return {key: at_most(share) for key, share in max_ratio.items()}
    if max_ratio is None or percentage(max_ratio) == 1:
        return None if max_ratio is None else 1.0
    return fraction("max_ratio", max_ratio)


def layer_ranges(layers: str | int | Iterable[int] | None) -> str | None:
    """Numbers of layers as text, such as ``4-20,25``; None for all layers.

    Raises:
        SelectionError: they are no numbers, or none.
    """
    if layers is None:
        return None
    numbers = layer_numbers(layers) if isinstance(layers, str | int) else sorted({*layers})
    if not numbers or any(type(n) is not int or n < 0 for n in numbers):
        raise SelectionError(f"layers={layers!r}: numbers of layers, such as '4-20,25'")
    edges = [n for n, m in pairwise([*numbers, -1]) if m != n + 1]
    found, first = [], numbers[0]
    for last in edges:
        found.append(str(first) if first == last else f"{first}-{last}")
        first = next((n for n in numbers if n > last), last)
    return ",".join(found)


def layer_numbers(layers: str | int) -> list[int]:
    """The numbers that such a text is about, ascending.

    Raises:
        SelectionError: it cannot be read.
    """
    found: set[int] = set()
    for part in str(layers).split(","):
        first, dash, last = part.strip().partition("-")
        ends = first, last if dash else first
        if not all(end.strip().isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise SelectionError(f"layers={layers!r}: numbers of layers, such as '4-20,25'")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(found)
