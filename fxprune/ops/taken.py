"""Units that are taken one by one, as in a loop over experts, each for the rows that chose it.

Of a unit that is gone the list of rows would be empty. If that alone makes everything dead that was
taken for the unit, its part of the graph goes with it; otherwise the axis is frozen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.axes import dims
from fxprune.axes.dims import Dim, Layout, find, resolve
from fxprune.ops.context import Context
from fxprune.ops.op import packet, register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument
from fxprune.trace.hits import AS_EMPTY, list_of, through, turned_back
from fxprune.trace.storage import mutates
from fxprune.trace.unhit import WRITES, left_of, overwritten

aten = torch.ops.aten


@dataclass(frozen=True)
class _Unit:
    """One unit of a dim."""

    dim: Dim
    place: int


@register_op(aten.select.int)
def select(ctx: Context, node: fx.Node) -> dims.Axes:
    """One place of an axis: the axis is gone, and frozen but where :func:`settle` finds a loop."""
    given: Any = node.args
    source, axis, place = given
    axes = ctx.of(source)
    axis = int(axis) % len(axes)
    if isinstance(place, int) and (not ctx.activation(source) or _counts(ctx, source, axis)):
        ctx.taken[node] = axes[axis], place % axes[axis].size
    else:
        _freeze(ctx, node, axes[axis])
    if ctx.activation(source):
        for layout in axes[:axis] + axes[axis + 1 :]:
            ctx.tag(layout, "stepped")
    return axes[:axis] + axes[axis + 1 :]


@patches(aten.select.int)
def place_of_unit(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A unit is taken where it is now; of one that is gone nothing is left that is used."""
    source: Any = old.args[0]
    axis, place = (int(argument(old, name)) for name in ("dim", "index"))
    layout = resize.axes(source)[axis]
    if resize.changed(layout):
        now = resize.before(layout, place % layout.size)
        new.args = (new.args[0], axis, min(now, resize.size(layout) - 1))


@patches(*WRITES)
def rows(resize: Resizer, old: fx.Node, new: fx.Node) -> fx.Node | None:
    """Rows of units that are gone are not written."""
    if left_of(old, resize.empty) is None:
        return None
    target: Any = new.args[0]
    new.replace_all_uses_with(target)
    new.graph.erase_node(new)
    return target  # type: ignore[no-any-return]


def settle(ctx: Context) -> None:
    """Decide on the units that are taken one by one."""
    graph = next((node.graph for node in ctx.taken), fx.Graph())
    found = dict(_lists(ctx, graph))
    if overwritten(graph, found):
        found = {}
    symbols: dict[_Unit, set[str]] = {}
    for symbol, unit in found.items():
        symbols.setdefault(unit, set()).add(symbol)
    partners: dict[Dim, tuple[fx.Node, Dim]] = {}
    for node, (layout, place) in ctx.taken.items():
        own = _unit(layout, place)
        chooser = next(_met(node, found), None) if own is not None and found else None
        if (
            own is None
            or chooser is None
            or own.place != chooser.place
            or own.dim.size > chooser.dim.size
            or partners.setdefault(own.dim, (node, chooser.dim))[1] is not chooser.dim
            or not (own.dim.frozen or chooser.dim.frozen or _dead(node, symbols[chooser]))
        ):
            _freeze(ctx, node, layout)
    for dim, (node, chosen) in partners.items():
        reason = ctx.why("units without weights of their own", node)
        more = Dim(chosen.size - dim.size, reason=reason)
        ctx.unify(dims.Sum((dim, more)), chosen, node)
        ctx.tag(dim, "expert")
    ctx.lists.update({symbol: (unit.dim, unit.place) for symbol, unit in found.items()})


def _freeze(ctx: Context, node: fx.Node, layout: Layout) -> None:
    ctx.freeze(layout, "one place of this axis is selected", node)


def _counts(ctx: Context, node: fx.Node, axis: int) -> bool:
    """Whether a value is zero at each unit of an axis that nothing points to."""
    source, place = turned_back(node, axis)
    known = source in ctx.counts and packet(source) is aten.one_hot
    return known and place == len(ctx.of(source)) - 1


def _unit(layout: Layout, place: int) -> _Unit | None:
    """The unit at a place of an axis, if there is one dim to it, or one for each stretch."""
    layout = resolve(layout)
    for part in layout.parts if isinstance(layout, dims.Sum) else [layout]:
        if place < part.size:
            return _Unit(find(part), place) if isinstance(part, Dim) else None
        place -= part.size
    return None


def _lists(ctx: Context, graph: fx.Graph) -> Iterator[tuple[str, _Unit]]:
    """Lists of the rows that point to one unit: the symbol of their length, and the unit."""
    for node in graph.nodes:
        source = list_of(node)
        part = None if source is None else through(source, AS_EMPTY)
        if part not in ctx.taken or not ctx.activation(part):
            continue
        unit = _unit(*ctx.taken[part])
        value = node.meta.get("val")
        if unit is not None and isinstance(value, torch.Tensor) and value.dim():
            yield str(value.shape[0]), unit


def _met(node: fx.Node, lists: dict[str, _Unit]) -> Iterator[_Unit]:
    """Whose rows a value is first used with."""
    seen, reached = {node}, deque([node])
    while reached:
        for user in reached.popleft().users:
            for value in pytree.tree_leaves(user.meta.get("val")):
                sizes = value.shape if isinstance(value, torch.Tensor) else ()
                yield from (lists[str(size)] for size in sizes if str(size) in lists)
            if user not in seen:
                seen.add(user)
                reached.append(user)


def _dead(node: fx.Node, symbols: set[str]) -> bool:
    """Whether nothing of a value is left in the graph where these lists are empty."""
    seen, reached = {node}, [node]
    while reached:
        source = reached.pop()
        for user in source.users:
            idle = packet(user) in WRITES and left_of(user, symbols) is not None
            if user in seen or (idle and source is not user.args[0]):
                continue
            if user.op == "output" or (mutates(user) and not idle):
                return False
            seen.add(user)
            reached.append(user)
    return True
