"""How many units the groups of a model have, before and after pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.groups.kinds import kind_of_unit, layer_of
from fxprune.inspect.drawing.fold import inside
from fxprune.inspect.drawing.words import unit

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.plan import Plan

Panel = tuple[str, str]
"""A stack of layers, and the name of a group as seen from such a layer."""


@dataclass(frozen=True)
class Width:
    """The units of one group that can be pruned.

    Attributes:
        name: of the group, in the model before pruning.
        kind: its kind.
        layer: stack and number, as :attr:`fxprune.Group.layer`.
        before: units of the model before pruning.
        after: units that are left; 0 where the whole layer went.
    """

    name: str
    kind: str
    layer: tuple[str, int] | None
    before: int
    after: int


def widths(
    graph: DependencyGraph, plan: Plan | None = None, original: Callable[[str], str] = str
) -> list[Width]:
    """The widths of all groups, in the order of the layers.

    Args:
        graph: of the model as it is, pruned by the plan if there is one.
        plan: what it was pruned by.
        original: a name in ``graph`` to that in the model before pruning.
    """
    found = {original(group.name): (group.kind, group.size) for group in graph.groups}
    alike = {inside(name, layer_at(name)): kind for name, (kind, _) in found.items()}
    rows = {
        name: Width(name, kind, layer_at(name), size, size) for name, (kind, size) in found.items()
    }
    for name, kept in plan.kept.items() if plan is not None else ():
        # A group of which one unit is left is an axis of size 1, and no group any more.
        kind = alike.get(inside(name, layer_at(name))) or kind_of_unit(unit(name))
        assert plan is not None
        rows[name] = Width(name, kind, layer_at(name), plan.sizes[name], len(kept))
    return sorted(rows.values(), key=lambda row: row.layer or ("", -1))


def layer_at(name: str) -> tuple[str, int] | None:
    """The numbered layer that a group, block or branch of that name lies in."""
    return layer_of(name.rpartition(":")[0])


def panels(rows: Iterable[Width]) -> dict[Panel, dict[int, Width]]:
    """Groups that are alike in the layers of a stack, by the number of the layer."""
    found: dict[Panel, dict[int, Width]] = {}
    for row in rows:
        if row.layer is not None:
            panel = row.layer[0], inside(row.name, row.layer)
            found.setdefault(panel, {})[row.layer[1]] = row
    return found


def removed_layers(plan: Plan | None) -> Mapping[str, dict[int, list[str]]]:
    """What went whole: by stack and number of the layer the names of blocks and branches."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in plan.removed if plan is not None else ():
        layer = layer_at(name)
        if layer is not None:
            found.setdefault(layer[0], {}).setdefault(layer[1], []).append(name)
    return found
