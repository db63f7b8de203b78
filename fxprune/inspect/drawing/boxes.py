"""Groups of the whole model, folded into few boxes, and the data flow between them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.groups.group import Group
from fxprune.inspect.drawing.fold import Layer, classes, inside

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_MANY = 3  # so many groups frozen for the same reason in the same place have a box each

Flows = dict[tuple[str, str], tuple[str, ...]]
"""From one group's name to another's: the modules whose dense contractions join them."""


@dataclass(frozen=True)
class Box:
    """Groups drawn as one.

    Attributes:
        groups: the groups; the first stands for all.
        layers: the layers alike that they are in, one group each; empty outside of layers.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Node of the picture."""
        return self.groups[0].name


def flows(graph: DependencyGraph) -> Flows:
    """Data flow from all to all, by groups."""
    network = graph.network
    found: dict[tuple[str, str], dict[str, None]] = {}
    for (_, a), target, edge in network.edges(data=True):
        if edge["fan"] == "all" and edge["data"]:
            modules = found.setdefault((a, target[1]), {})
            modules[network.nodes[target]["module"]] = None
    return {pair: tuple(modules) for pair, modules in found.items()}


def chosen(
    graph: DependencyGraph, flow: Flows, wanted: Set[str] | None
) -> tuple[list[Group], list[Group]]:
    """The wanted groups and those they exchange data with (for None all); and the idle ones.

    Idle are frozen groups of the whole model that exchange data with none, such as the rows of a
    kernel: they are worth a note, not a box.
    """
    every = [*graph.groups, *graph.frozen]
    busy = {name for pair in flow for name in pair}
    if wanted is None:
        idle = [g for g in graph.frozen if g.name not in busy]
        return [g for g in every if g.reason is None or g.name in busy], idle
    near = {name for pair in flow if not wanted.isdisjoint(pair) for name in pair}
    return [group for group in every if group.name in wanted or group.name in near], []


def boxes(groups: Iterable[Group], flow: Flows) -> list[Box]:
    """One box per group, but one for groups in layers alike or frozen alike."""
    members: dict[Layer, list[Group]] = {}
    single: list[Group] = []
    for group in groups:
        if group.layer is None:
            single.append(group)
        else:
            members.setdefault(group.layer, []).append(group)
    found = [Box((group,), ()) for group in single]
    for alike in classes(_signatures(members, flow)):
        columns = zip(*(members[layer] for layer in alike), strict=True)
        found.extend(Box(column, alike) for column in columns)
    return _thaw(found)


def _signatures(members: Mapping[Layer, list[Group]], flow: Flows) -> dict[Layer, Hashable]:
    """What a layer looks like, sizes and its number apart."""
    around: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {}
    for (a, b), modules in flow.items():
        around.setdefault(a, []).append(("to", b, modules))
        around.setdefault(b, []).append(("from", a, modules))
    return {
        layer: tuple(
            (
                inside(group.name, layer),
                group.kind,
                _numberless(group.reason or ""),
                tuple(
                    (way, _relative(other, layer), tuple(inside(m, layer) for m in modules))
                    for way, other, modules in around.get(group.name, ())
                ),
            )
            for group in groups
        )
        for layer, groups in members.items()
    }


def _relative(name: str, layer: Layer) -> tuple[int, str] | str:
    """Another group as seen from a layer: so many layers on, or by its name."""
    stack, index = layer
    match = re.match(rf"{re.escape(stack)}\.(\d+)(.*)", name, re.DOTALL)
    return (int(match.group(1)) - index, match.group(2)) if match else name


def _numberless(reason: str) -> str:
    return re.sub(r"\d+", "#", reason)


def _thaw(found: Iterable[Box]) -> list[Box]:
    """Put groups frozen alike in the same place together, where there are many."""
    alike: dict[Hashable, list[Box]] = {}
    for number, box in enumerate(found):
        reason = box.groups[0].reason
        key = number if reason is None else (box.layers, _numberless(reason))
        alike.setdefault(key, []).append(box)
    packed: list[Box] = []
    for together in alike.values():
        if len(together) > _MANY:
            groups = tuple(group for box in together for group in box.groups)
            packed.append(Box(groups, together[0].layers))
        else:
            packed.extend(together)
    return packed
