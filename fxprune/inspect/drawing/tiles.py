"""Values that share a box of the neuron graph, because a box each would say no more."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.scene import Value
from fxprune.inspect.drawing.wires import Wire

Tile = tuple[Value, ...]
"""Values in one box, all with the same groups unless they are context."""


def shown(tile: Tile) -> list[str]:
    """The groups a box has cells for."""
    return list(dict.fromkeys(group for value in tile for group in value.groups))


_BOTH = "R1 R2"


@dataclass
class _Around:
    """Where a value's wires lead."""

    before: dict[str, None]
    after: dict[str, None]
    ends: set[Hashable]


def tiles(
    values: Sequence[Value], wires: Iterable[Wire], focus: Collection[NeuronSet]
) -> list[Tile]:
    """The boxes, in the order of the graph.

    In a row (view, transpose, ...) values share one if each is the other's only partner, under R1
    and R2; side by side, if they are parameters or context and have the same partners.
    """
    around = {value.name: _Around({}, {}, set()) for value in values}
    plain: dict[tuple[str, str], set[str]] = {}
    for wire in wires:
        (source, group), (target, other) = wire.source, wire.target
        if source in around:
            around[source].after[target] = None
            around[source].ends.add(("to", wire.target, wire.line))
        if target in around:
            around[target].before[source] = None
            around[target].ends.add(("from", wire.source, wire.line))
        if wire.line == _BOTH and group == other:
            plain.setdefault((source, target), set()).add(group)
    found: dict[Hashable, list[Value]] = {}
    home: dict[str, Hashable] = {}
    for value in values:
        key: Hashable = value.name
        if value.parameter or not _asked(value, focus):
            key = _beside(value, around[value.name], focus)
        else:
            previous = home.get(_behind(value, around, plain))
            if previous is not None and _alike(found[previous][-1], value):
                key = previous
        home[value.name] = key
        found.setdefault(key, []).append(value)
    return [tuple(together) for together in found.values()]


def _asked(value: Value, focus: Collection[NeuronSet]) -> bool:
    return any((value.name, group) in focus for group in value.groups)


def _beside(value: Value, around: _Around, focus: Collection[NeuronSet]) -> Hashable:
    """Equal for values that may stand side by side in one box."""
    if not around.ends:
        return value.name
    seen = (value.groups, value.axes) if _asked(value, focus) else ()
    return (value.frames, value.parameter, seen, frozenset(around.ends))


def _behind(
    value: Value, around: dict[str, _Around], plain: dict[tuple[str, str], set[str]]
) -> str:
    """The value that this one follows in a row, or ""."""
    before = list(around[value.name].before)
    last = before[0] if len(before) == 1 else ""
    alone = last in around and list(around[last].after) == [value.name]
    return last if alone and plain.get((last, value.name)) == set(value.groups) else ""


def _alike(last: Value, value: Value) -> bool:
    return last.groups == value.groups and last.frames == value.frames and not last.parameter
