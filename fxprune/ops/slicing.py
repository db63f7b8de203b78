"""Slices and concatenations: an axis is a sum of its pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout, Sum
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import END, argument, axis_of

aten = torch.ops.aten


def _replaced(axes: Axes, place: int, layout: Layout) -> Axes:
    return (*axes[:place], layout, *axes[place + 1 :])


def _cut(ctx: Context, node: fx.Node, layout: Layout, value: Any, place: int, what: str) -> Layout:
    """The output axis where pieces cannot be followed: frozen on both sides."""
    ctx.freeze(layout, what, node)
    size, free = ctx.shape(value)[place]
    return Dim(size, free, ctx.why(what, node))


@register_op(aten.slice.Tensor, aten.narrow)
def slice_(ctx: Context, node: fx.Node) -> Axes:
    """``x[start:end:step]`` along one axis."""
    return _piece(ctx, node, node)


@register_op(aten.slice_scatter)
def slice_scatter(ctx: Context, node: fx.Node) -> Axes:
    """``x[start:end:step] = y``: what is written has the axes of that slice."""
    return scattered(ctx, node, _piece)


def scattered(
    ctx: Context, node: fx.Node, piece_of: Callable[[Context, fx.Node, Any], Axes]
) -> Axes:
    """Axes of a value of which a piece is written: what is written has the axes of that piece."""
    target, written = node.args[:2]
    for mine, theirs in zip(piece_of(ctx, node, written), ctx.of(written), strict=True):
        ctx.unify(mine, theirs, node)
    return ctx.of(target)


def _piece(ctx: Context, node: fx.Node, piece: Any) -> Axes:
    """The axes of the slice that an op reads or writes, which has the shape of ``piece``."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    place = axis_of(node, len(axes))
    layout = axes[place]
    size, free = ctx.shape(source)[place]
    bounds = [argument(node, name) for name in ("start", "end", "step", "length")]
    if free or any(isinstance(bound, fx.Node) for bound in bounds):
        return _replaced(
            axes, place, _cut(ctx, node, layout, piece, place, "a slice of a symbolic axis")
        )
    start, end, step, length = bounds
    if length is not None:
        start = start % size if size else 0
        end = start + length
    first, last, stride = slice(start, end, step).indices(size)
    if stride == 1:
        halves = dims.split_sum(layout, last)
        middle = halves and dims.split_sum(halves[0], first)
        if middle:
            return _replaced(axes, place, middle[1])
    elif size % stride == 0 and first < stride and last > size - stride + first:
        blocks = dims.split_product(layout, size // stride)
        if blocks:
            ctx.freeze(blocks[1], "every n-th unit is taken", node)
            return _replaced(axes, place, blocks[0])
    cut = _cut(ctx, node, layout, piece, place, "a slice that cuts through a block")
    return _replaced(axes, place, cut)


@register_op(
    aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk,
    aten.tensor_split, aten.split_copy, aten.split_with_sizes_copy,
)  # fmt: skip
def split(ctx: Context, node: fx.Node) -> list[Axes]:
    """Consecutive pieces."""
    source: Any = node.args[0]
    axes, values = ctx.of(source), node.meta["val"]
    place = axis_of(node, len(axes))
    rest: Layout | None = None if ctx.shape(source)[place][1] else axes[place]
    out: list[Axes] = []
    for value in values:
        halves = rest and dims.split_sum(rest, ctx.sizes_of(value)[place])
        if halves:
            piece, rest = halves
        else:
            what = "a split that cuts through a block"
            piece, rest = _cut(ctx, node, axes[place], value, place, what), None
        out.append(_replaced(axes, place, piece))
    return out


@register_op(aten.glu)
def glu(ctx: Context, node: fx.Node) -> Axes:
    """``a * sigmoid(b)`` of the halves a and b."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    place = axis_of(node, len(axes))
    free = ctx.shape(source)[place][1]
    halves = None if free else dims.split_sum(axes[place], axes[place].size // 2)
    if halves is None:
        piece = _cut(ctx, node, axes[place], node, place, "a split that cuts through a block")
        return _replaced(axes, place, piece)
    ctx.unify(halves[0], halves[1], node)
    return _replaced(axes, place, halves[0])


@register_op(aten.cat, aten.concat, aten.concatenate)
def cat(ctx: Context, node: fx.Node) -> Axes:
    """The named axis is the sum of the operands'; the others are the same axis."""
    operands: Any = node.args[0]
    rank = len(ctx.shape(node))
    operands = [x for x in operands if len(ctx.of(x)) == rank]
    place = axis_of(node, rank)
    first = ctx.of(operands[0])
    for operand in operands[1:]:
        for axis, (mine, theirs) in enumerate(zip(first, ctx.of(operand), strict=True)):
            if axis != place:
                ctx.unify(mine, theirs, node)
    pieces = [ctx.of(x)[place] for x in operands]
    if any(ctx.shape(x)[place][1] for x in operands):
        for piece in pieces:
            ctx.freeze(piece, "a concatenation of symbolic length", node)
        size, free = ctx.shape(node)[place]
        return _replaced(first, place, Dim(size, free, "a concatenation of symbolic length"))
    return _replaced(first, place, Sum(tuple(pieces)))


@register_op(aten.stack)
def stack(ctx: Context, node: fx.Node) -> Axes:
    """A new axis, frozen, whose places are the operands."""
    operands: Any = node.args[0]
    first = ctx.of(operands[0])
    for operand in operands[1:]:
        for mine, theirs in zip(first, ctx.of(operand), strict=True):
            ctx.unify(mine, theirs, node)
    place = axis_of(node, len(first) + 1)
    return (
        *first[:place],
        Dim(len(operands), reason=ctx.why("stacked tensors", node)),
        *first[place:],
    )


@register_op(aten.unbind)
def unbind(ctx: Context, node: fx.Node) -> list[Axes]:
    """Every place of an axis on its own: the axis is frozen and gone."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    place = axis_of(node, len(axes))
    ctx.freeze(axes[place], "every place of this axis is selected", node)
    return [axes[:place] + axes[place + 1 :]] * len(node.meta["val"])


@patches(aten.slice.Tensor, aten.slice_scatter)
def slice_bounds(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A boundary moves to the number of kept units before it."""
    source: Any = old.args[0]
    tensors = new.args[: 1 if old.target is aten.slice.Tensor else 2]
    axis = int(argument(new, "dim"))
    start, end, step = (argument(new, name) for name in ("start", "end", "step"))
    layout = resize.axes(source)[axis]
    if not resize.changed(layout):
        return
    if step != 1:
        # Every n-th unit of (outer x n): only the outer units can be gone.
        first, _, _ = slice(start, end, step).indices(layout.size)
        new.args = (*tensors, axis, first, END, step)
        return
    first, last, _ = slice(start, end).indices(layout.size)
    new.args = (*tensors, axis, resize.before(layout, first), resize.before(layout, last))
    new.kwargs = {}


@patches(aten.narrow)
def narrow_bounds(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Start and length of a piece."""
    source, axis, start, length = old.args
    layout = resize.axes(source)[axis]  # type: ignore[arg-type, index]
    if resize.changed(layout) and isinstance(start, int) and isinstance(length, int):
        first = resize.before(layout, start % layout.size)
        last = resize.before(layout, start % layout.size + length)
        new.args = (new.args[0], axis, first, last - first)


@patches(
    aten.split, aten.split_with_sizes, aten.chunk, aten.unsafe_split, aten.unsafe_chunk,
    aten.tensor_split, aten.split_copy, aten.split_with_sizes_copy,
)  # fmt: skip
def split_sizes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Pieces may have lost different numbers of units, so their sizes are listed."""
    source: Any = old.args[0]
    place = axis_of(old, len(resize.axes(source)))
    if not resize.changed(resize.axes(source)[place]):
        return
    pieces = resize.inferred.axes[old]
    new.target = aten.split_with_sizes.default
    new.args = (new.args[0], [resize.size(axes[place]) for axes in pieces], place)  # type: ignore[index]
    new.kwargs = {}
