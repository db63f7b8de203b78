"""Residual branches and blocks of a picture: which can be removed, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fxprune.branches.find import find_branches
from fxprune.groups.kinds import layer_of
from fxprune.inspect.drawing.fold import ranges
from fxprune.inspect.drawing.words import shortened
from fxprune.trace.traced import Traced

_MOST = 8


def depth_notes(traced: Traced, layer: int | None) -> list[tuple[str, str]]:
    """What can be removed in depth, by place; then what cannot or is removed already.

    Args:
        traced: the model.
        layer: only what lies in layers of this number, or everything for None.

    Returns:
        Where, and what is there; places alike are one line.
    """
    found = find_branches(traced)
    here: dict[str, list[str]] = {}
    for name in found.units:
        place, _, kind = name.rpartition(":")
        here.setdefault(place or "(model)", []).append(kind)
    removable = {place: ", ".join(kinds) for place, kinds in here.items()}
    refused = {name: f"stays: {reason}" for name, reason in found.refused.items()}
    removed = dict.fromkeys(traced.removed, "removed")
    return [
        note
        for part in (removable, refused, removed)
        for note in _folded({n: text for n, text in part.items() if _inside(n, layer)})
    ]


def _inside(name: str, layer: int | None) -> bool:
    place = layer_of(_module(name))
    return layer is None or (place is not None and place[1] == layer)


def _module(name: str) -> str:
    """The module that a unit, or a run of a shared block, is in."""
    return name.partition(":")[0].partition("@")[0]


def _folded(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Places with one text as one line, and the last lines as a number of them."""
    places: dict[tuple[str, str, str], list[int]] = {}
    for name, text in texts.items():
        before, number, behind = _split(name)
        places.setdefault((before, behind, text), []).extend(number)
    notes: dict[str, list[str]] = {}
    for (before, behind, text), numbers in places.items():
        several = f"[{ranges(numbers)}]" if len(numbers) > 1 else "".join(map(str, numbers))
        notes.setdefault(text, []).append(f"{before}{several}{behind}")
    lines = [(shortened(names), text) for text, names in notes.items()]
    left = len(lines) - _MOST
    return [*lines[:_MOST], *([(f"{left} more", "")] if left > 0 else [])]


def _split(name: str) -> tuple[str, Iterable[int], str]:
    """A name around the number of its layer."""
    layer = layer_of(_module(name))
    if layer is None:
        return name, (), ""
    stack, number = layer
    return f"{stack}.", (number,), name.removeprefix(f"{stack}.{number}")
