"""What the boxes of the collapsed graph say."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from fxprune.axes.dims import kept_size
from fxprune.groups.drawing.boxes import Box
from fxprune.groups.drawing.canvas import Markup, cell, escape, font, table, wrapped
from fxprune.groups.drawing.fold import ranges
from fxprune.groups.drawing.style import COLOURS, GREY, PLAIN, look_of
from fxprune.groups.drawing.words import short_module, shortened, span, unit, without_numbers
from fxprune.groups.group import Group

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_MOST = 4  # parameters that are named


def card(graph: DependencyGraph, box: Box) -> Markup:
    """Kind and units, the group's name, and what it carries or why it is frozen."""
    group = box.groups[0]
    fill, colour = COLOURS[look_of(group)]
    head = font(f"<B>{escape(unit(group.name))}</B>  {escape(group.kind)}", colour=colour)
    facts = _facts(graph, box) if group.reason is None else _frozen(box, group.reason)
    rows = (
        [cell(head, BGCOLOR=fill)],
        [cell(wrapped(_pattern(box), 40), BGCOLOR="white")],
        [cell(facts, BGCOLOR="white")],
    )
    return table(rows, **PLAIN)


def _facts(graph: DependencyGraph, box: Box) -> str:
    size = span([group.size for group in box.groups])
    sites = span([len(group.sites) for group in box.groups])
    carried = span([_carried(graph, group) for group in box.groups])
    text = f"{size} units, {sites} sites, {carried} parameters{_each(box)}"
    own = shortened(_parameters(box.groups[0]), _MOST)
    return f"{escape(text)}<BR/>{font(wrapped(own, 44), size=9, colour=GREY)}"


def _frozen(box: Box, reason: str) -> str:
    size = span([group.size for group in box.groups])
    return f"{size} units{_each(box)}<BR/>frozen: {wrapped(reason, 40)}"


def _each(box: Box) -> str:
    return " each" if len(box.groups) > 1 else ""


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


def _carried(graph: DependencyGraph, group: Group) -> int:
    """How many parameters would go with all units of the group."""
    total = 0
    for name in group.parameters:
        layouts = graph.layouts[name]
        left = prod(kept_size(layout, {group.dim: 0}) for layout in layouts)
        total += prod(layout.size for layout in layouts) - left
    return total
