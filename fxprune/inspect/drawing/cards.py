"""What the boxes of the collapsed graph say."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fxprune.axes.dims import find
from fxprune.axes.positions import kept_size
from fxprune.groups.group import Group
from fxprune.inspect.drawing.boxes import Box
from fxprune.inspect.drawing.canvas import Markup, cell, escape, font, table, wrapped
from fxprune.inspect.drawing.fold import ranges
from fxprune.inspect.drawing.style import COLOURS, FROZEN, GREY, PLAIN, look_of
from fxprune.inspect.drawing.words import short_module, shortened, span, unit, without_numbers

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_MOST = 4  # parameters that are named


@dataclass(frozen=True)
class Facts:
    """What a box says.

    Attributes:
        unit: what its units are called.
        kind: kind of its groups.
        look: a key of :data:`fxprune.inspect.drawing.style.COLOURS`.
        name: the group's name, or for several layers what their names have in common.
        counts: numbers of units, sites and parameters.
        more: the parameters by name, or why it is frozen.
    """

    unit: str
    kind: str
    look: str
    name: str
    counts: str
    more: str


def facts(graph: DependencyGraph, box: Box) -> Facts:
    """Kind and units, the group's name, and what it carries or why it is frozen."""
    group = box.groups[0]
    head = unit(group.name), group.kind, look_of(group), _pattern(box)
    each = " each" if len(box.groups) > 1 else ""
    size = span([group.size for group in box.groups])
    if group.reason is not None:
        return Facts(*head, f"{size} units{each}", f"frozen: {group.reason}")
    sites = span([len(group.sites) for group in box.groups])
    held = span([carried(graph, group) for group in box.groups])
    own = shortened(_parameters(group), _MOST)
    return Facts(*head, f"{size} units, {sites} sites, {held} parameters{each}", own)


def card(graph: DependencyGraph, box: Box) -> Markup:
    """The facts of a box as a table."""
    said = facts(graph, box)
    fill, colour = COLOURS[said.look]
    head = font(f"<B>{escape(said.unit)}</B>  {escape(said.kind)}", colour=colour)
    more = wrapped(said.more, 40 if said.look == FROZEN else 44)
    if said.look != FROZEN:
        more = font(more, size=9, colour=GREY)
    rows = (
        [cell(head, BGCOLOR=fill)],
        [cell(wrapped(said.name, 40), BGCOLOR="white")],
        [cell(f"{escape(said.counts)}<BR/>{more}", BGCOLOR="white")],
    )
    return table(rows, **PLAIN)


def _pattern(box: Box) -> str:
    """The group's name, or for several layers what their names have in common."""
    name = box.name
    if len(box.layers) > 1:
        stack, first = box.layers[0]
        numbers = ranges(index for _, index in box.layers)
        name = f"{stack}.[{numbers}]{name.removeprefix(f'{stack}.{first}')}"
    extra = len(box.groups) - max(1, len(box.layers))
    return f"{name} and {extra} more" if extra else name


def _parameters(group: Group) -> list[str]:
    """The group's parameters as its own place sees them."""
    place = group.name.rpartition(":")[0]
    if any(p.removeprefix(f"{place}.")[:1].isdigit() for p in group.parameters):
        place = place[: -len(short_module(place))].rstrip(".")
    names = [p.removeprefix(f"{place}.").removesuffix(".weight") for p in group.parameters]
    return names if len(names) <= _MOST else without_numbers(names)


def carried(graph: DependencyGraph, group: Group) -> int:
    """How many numbers of the model's parameters belong to some unit of the group.

    A number belongs to a group of neurons on either axis of its matrix, so the groups' shares
    overlap and do not add up to the model.
    """
    none = {find(group.dim): 0}
    total = 0
    for name in group.parameters:
        layouts = graph.layouts[name]
        total += prod(layout.size for layout in layouts)
        total -= prod(kept_size(layout, none) for layout in layouts)
    return total
