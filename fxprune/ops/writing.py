"""Writes by position: the axis that is written along is frozen, the others pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Layout
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.slicing import scattered
from fxprune.trace.arguments import argument, axis_of

aten = torch.ops.aten
_WRITTEN = "written by index"


@register_op(
    aten.index_add, aten.index_add_, aten.index_copy, aten.index_copy_, aten.index_fill,
    aten.index_fill_, aten.index_reduce, aten.index_reduce_, aten.select_scatter,
)  # fmt: skip
def along_one_axis(ctx: Context, node: fx.Node) -> Axes:
    """Places of one axis are written; what is written has the same other axes."""
    target: Any = node.args[0]
    axes = ctx.of(target)
    place = axis_of(node, len(axes))
    ctx.freeze(axes[place], _WRITTEN, node)
    index = argument(node, "index")
    source = argument(node, "source") or argument(node, "src")
    if isinstance(index, fx.Node) and index in ctx.axes:
        for layout in ctx.of(index):
            ctx.freeze(layout, _WRITTEN, node)
    if isinstance(source, fx.Node) and source in ctx.axes:
        theirs = list(ctx.of(source))
        if len(theirs) == len(axes):
            ctx.freeze(theirs.pop(place), _WRITTEN, node)
        for mine, other in zip((*axes[:place], *axes[place + 1 :]), theirs, strict=True):
            ctx.unify(mine, other, node)
    return axes


@register_op(
    aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.scatter_reduce,
    aten.scatter_reduce_,
)  # fmt: skip
def scatter(ctx: Context, node: fx.Node) -> Axes:
    """Each element goes to a place of its own on one axis, and stays where it is on the others."""
    target: Any = node.args[0]
    operands = [n for n in node.all_input_nodes if n in ctx.axes and len(ctx.of(n))]
    place = axis_of(node, max(1, len(ctx.of(target))))
    index = argument(node, "index")
    for axis, mine in enumerate(ctx.of(target)):
        theirs = [ctx.of(operand)[axis] for operand in operands]
        if axis == place and ctx.pointed(index) is not None:
            ctx.look_up(target, axis, index, _WRITTEN, node)
        elif axis == place or any(other.size != mine.size for other in theirs):
            for layout in theirs:
                ctx.freeze(layout, _WRITTEN, node)
        else:
            for layout in theirs:
                ctx.unify(mine, layout, node)
    return ctx.of(target)


@register_op(aten.index_put, aten.index_put_, aten._unsafe_index_put)
def index_put(ctx: Context, node: fx.Node) -> Axes:
    """``x[:, i, j] = values``: indexed axes are frozen, the others are those of the values."""
    target, indices, values = node.args[:3]
    axes = ctx.of(target)
    given: Any = indices
    places = [a for a, i in enumerate(given) if i is not None]
    tensors = [given[place] for place in places]
    if any(tensor.meta["val"].dtype == torch.bool for tensor in tensors):
        return _masked(ctx, node, axes, given)
    for place in places:
        ctx.freeze(axes[place], _WRITTEN, node)
    rank = max(len(ctx.of(tensor)) for tensor in tensors)
    written = ctx.broadcast(node, tensors, rank)
    for layout in written:
        ctx.freeze(layout, _WRITTEN, node)
    together = places == list(range(places[0], places[-1] + 1))
    start = places[0] if together else 0
    rest = [x for a, x in enumerate(axes) if a not in places]
    whole = (*rest[:start], *written, *rest[start:])
    for mine, theirs in zip(reversed(whole), reversed(ctx.of(values)), strict=False):
        if theirs.size > 1:
            ctx.unify(mine, theirs, node)
    return axes


def _masked(ctx: Context, node: fx.Node, axes: Axes, indices: list[fx.Node | None]) -> Axes:
    """``x[mask] = number`` goes element by element; anything else cannot be followed."""
    values: Any = node.args[2]
    places = [a for a, i in enumerate(indices) if i is not None]
    if len(places) > 1 or any(layout.size != 1 for layout in ctx.of(values)):
        ctx.opaque(node, "written by a mask")
        return axes
    mask = ctx.of(indices[places[0]])
    for mine, theirs in zip(axes[places[0] :], mask, strict=False):
        ctx.unify(mine, theirs, node)
    return axes


@register_op(aten.diagonal, aten.diagonal_copy)
def diagonal(ctx: Context, node: fx.Node) -> Axes:
    """Two axes become one: they are the same where it meets every unit of both."""
    return _diagonal(ctx, node, node)


@register_op(aten.diagonal_scatter)
def diagonal_scatter(ctx: Context, node: fx.Node) -> Axes:
    """What is written has the axes of that diagonal."""
    return scattered(ctx, node, _diagonal)


def _diagonal(ctx: Context, node: fx.Node, part: Any) -> Axes:
    """The axes of the diagonal that an op reads or writes, which has the shape of ``part``."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    pair = {int(argument(node, name)) % len(axes) for name in ("dim1", "dim2")}
    rest = [layout for place, layout in enumerate(axes) if place not in pair]
    one, other = (axes[place] for place in pair)
    if one.size == other.size and argument(node, "offset") == 0:
        ctx.unify(one, other, node)
        return (*rest, one)
    for layout in (one, other):
        ctx.freeze(layout, "a diagonal of this axis", node)
    size, free = ctx.shape(part)[-1]
    return (*rest, dims.Dim(size, free, ctx.why("a diagonal of this axis", node)))


@register_op(aten.unfold)
def unfold(ctx: Context, node: fx.Node) -> Axes:
    """Windows over one axis, their units on a new last one."""
    source: Any = node.args[0]
    axes: list[Layout] = list(ctx.of(source))
    place = axis_of(node, max(1, len(axes)), "dimension")
    what = "a window slides over this axis"
    for layout in axes[place : place + 1]:
        ctx.freeze(layout, what, node)
    fresh = ctx.fresh(node, ctx.why(what, node))
    axes[place : place + 1] = fresh[place : place + 1] if axes else []
    return (*axes, fresh[-1])
