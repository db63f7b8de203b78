"""The units that stay as positions on an axis, and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from fxprune.axes.dims import Dim, Layout, Product, Sum, resolve
from fxprune.errors import PlanError

Units = NDArray[np.int64]
_RANGES = re.compile(r"(\d{1,12}(-\d{1,12})?(,\d{1,12}(-\d{1,12})?)*)?")


def kept_size(layout: Layout, kept: Mapping[Dim, int]) -> int:
    """Size of the axis after pruning.

    Args:
        layout: the axis before.
        kept: how many units stay, by dim; a dim that is absent keeps all.
    """
    layout = resolve(layout)
    if isinstance(layout, Dim):
        return kept.get(layout, layout.size)
    sizes = (kept_size(part, kept) for part in layout.parts)
    return prod(sizes) if isinstance(layout, Product) else sum(sizes)


def index(layout: Layout, kept: Mapping[Dim, Units]) -> Units:
    """Positions on the axis that stay, ascending.

    Args:
        layout: the axis before.
        kept: the units that stay, ascending, by dim; a dim that is absent keeps all.

    Returns:
        int64 array of shape (kept_size,): an atom gives its kept units, a sum concatenates with
        offsets, a product gives ``outer * inner.size + inner``.
    """
    layout = resolve(layout)
    if isinstance(layout, Dim):
        units = kept.get(layout)
        return np.arange(layout.size, dtype=np.int64) if units is None else units
    if isinstance(layout, Sum):
        pieces, offset = [np.empty(0, dtype=np.int64)], 0
        for part in layout.parts:
            pieces.append(index(part, kept) + offset)
            offset += part.size
        return np.concatenate(pieces)
    positions = np.zeros(1, dtype=np.int64)
    for part in layout.parts:
        positions = (positions[:, None] * part.size + index(part, kept)[None, :]).reshape(-1)
    return positions


def as_ranges(size: int, kept: Iterable[int]) -> str:
    """The units that are not kept, as text: ``"0-3,7"``."""
    edges = (-1, *kept, size)
    gaps = ((a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


def from_ranges(size: int, removed: str, where: str) -> tuple[int, ...]:
    """The units that are kept, of a text of those that are not.

    Raises:
        PlanError: it is no such text, and the message says of what.
    """
    if not _RANGES.fullmatch(removed):
        raise PlanError(f"{where}: the removed units are not a list of ranges ({removed!r:.60})")
    kept: list[int] = []
    following = 0
    for piece in removed.split(",") if removed else ():
        first, _, last = piece.partition("-")
        start, stop = int(first), int(last or first) + 1
        if stop > size:
            raise PlanError(f"{where}: unit {stop - 1} is out of range; it has {size} units")
        if start < following or stop <= start:
            raise PlanError(f"{where}: the removed units repeat or are not sorted, at {piece!r}")
        kept.extend(range(following, start))
        following = stop
    kept.extend(range(following, size))
    return tuple(kept)


def check_units(name: str, size: int, units: Sequence[int]) -> None:
    """Refuse what cannot be the units of a group that stay.

    Args:
        name: of the group.
        size: its number of units.
        units: those that stay.

    Raises:
        PlanError: there are none, or they are out of range, repeated or unsorted.
    """
    if not units:
        raise PlanError(f"group {name!r} keeps 0 of its {size} units; at least 1 must stay")
    array = np.asarray(units)
    if array.dtype.kind != "i":
        raise PlanError(f"group {name!r}: kept units must be integers")
    outside = array[(array < 0) | (array >= size)]
    if outside.size:
        raise PlanError(
            f"group {name!r}: unit {outside[0]} is out of range; it has {size} units, "
            f"0 to {size - 1}"
        )
    steps = np.diff(array)
    if (steps == 0).any():
        unit = array[int(np.argmax(steps == 0))]
        raise PlanError(f"group {name!r}: unit {unit} is a duplicate")
    if (steps < 0).any():
        raise PlanError(f"group {name!r}: kept units are not sorted")
