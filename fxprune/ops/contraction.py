"""Matrix products: the contracted axes are one axis, the batch axes are one, the rest pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Layout
from fxprune.axes.polynomial import Polynomial, product
from fxprune.ops.context import Context
from fxprune.ops.op import AxisSizes, Macs, MatrixProduct, register_op
from fxprune.trace.arguments import argument

aten = torch.ops.aten


def contract(
    ctx: Context, node: fx.Node, a: Any, left: Layout, b: Any, right: Layout, features: Axes
) -> None:
    """Unify two contracted axes; each of their neurons feeds every output feature."""
    ctx.unify(left, right, node)
    ctx.align(a, left, b, right)
    source = (a, left) if ctx.activation(a) else (b, right)
    for feature in features:
        ctx.flow(source[0], source[1], node, "all", feature)
    if ctx.activation(a) and ctx.activation(b):
        ctx.tag(left, "inner")


@register_op(aten.linear)
def linear(ctx: Context, node: fx.Node) -> Axes:
    """``y = x W^T + b``: x (..., in), W (out, in), b (out)."""
    given: Any = node.args
    x, weight, *bias = given
    out = ctx.of(weight)[0]
    contract(ctx, node, x, ctx.of(x)[-1], weight, ctx.of(weight)[1], (out,))
    ctx.flow(weight, out, node)
    if bias and bias[0] is not None:
        ctx.unify(out, ctx.of(bias[0])[0], node)
        ctx.flow(bias[0], ctx.of(bias[0])[0], node, to=out)
    for layout in ctx.of(x)[:-1]:
        ctx.flow(x, layout, node)
    return (*ctx.of(x)[:-1], out)


@register_op(aten.mm, aten.bmm, aten.matmul, aten.mv, aten.dot, aten.vdot)
def matmul(ctx: Context, node: fx.Node) -> Axes:
    """``a @ b`` with any ranks."""
    a, b = node.args
    return _product(ctx, node, a, b)


@register_op(aten.addmm, aten.baddbmm, aten.addmv)
def addmm(ctx: Context, node: fx.Node) -> Axes:
    """``beta * c + alpha * (a @ b)``."""
    given: Any = node.args
    c, a, b = given[:3]
    out = _product(ctx, node, a, b)
    for mine, theirs in zip(reversed(out), reversed(ctx.of(c)), strict=False):
        if theirs.size > 1:
            ctx.unify(mine, theirs, node)
            ctx.flow(c, theirs, node, to=mine)
    return out


@register_op(aten.addbmm)
def addbmm(ctx: Context, node: fx.Node) -> Axes:
    """``beta * c + alpha * sum_i a[i] @ b[i]``: the batch is contracted too."""
    given: Any = node.args
    c, a, b = given[:3]
    (batch, rows, inner), (same, other, columns) = ctx.of(a), ctx.of(b)
    kept = columns if ctx.activation(a) else rows
    contract(ctx, node, a, batch, b, same, (kept,))
    contract(ctx, node, a, inner, b, other, (kept,))
    ctx.flow(a, rows, node)
    ctx.flow(b, columns, node)
    for mine, theirs in zip((columns, rows), reversed(ctx.of(c)), strict=False):
        if theirs.size > 1:
            ctx.unify(mine, theirs, node)
            ctx.flow(c, theirs, node, to=mine)
    return (rows, columns)


@register_op(aten.bilinear)
def bilinear(ctx: Context, node: fx.Node) -> Axes:
    """``a W b`` for each output: W (out, in of a, in of b)."""
    given: Any = node.args
    a, b, weight, *bias = given
    out, left, right = ctx.of(weight)
    contract(ctx, node, a, ctx.of(a)[-1], weight, left, (out,))
    contract(ctx, node, b, ctx.of(b)[-1], weight, right, (out,))
    ctx.flow(weight, out, node)
    if bias and bias[0] is not None:
        ctx.unify(out, ctx.of(bias[0])[0], node)
        ctx.flow(bias[0], out, node)
    for mine, theirs in zip(ctx.of(a)[:-1], ctx.of(b)[:-1], strict=True):
        ctx.unify(mine, theirs, node)
        ctx.flow(a, mine, node)
        ctx.flow(b, theirs, node)
    return (*ctx.of(a)[:-1], out)


@register_op(aten.cdist, aten._cdist_forward)
def cdist(ctx: Context, node: fx.Node) -> Axes:
    """Distances of the rows of a to those of b, over the last axis of both."""
    given: Any = node.args
    a, b = given[:2]
    (*_, rows, left), (*_, columns, right) = ctx.of(a), ctx.of(b)
    both = ctx.activation(a) and ctx.activation(b)
    batch = _batch(ctx, node, (a, ctx.of(a)), (b, ctx.of(b)), both)
    contract(ctx, node, a, left, b, right, (columns,) if ctx.activation(a) else (rows,))
    ctx.flow(a, rows, node)
    ctx.flow(b, columns, node)
    return (*batch, rows, columns)


@register_op(aten.pdist, aten._pdist_forward)
def pdist(ctx: Context, node: fx.Node) -> Axes:
    """Distances of every pair of rows."""
    source: Any = node.args[0]
    ctx.freeze(ctx.of(source)[0], "pairs of units of this axis", node)
    return ctx.fresh(node, ctx.why("pairs of units of an axis", node))


def _product(ctx: Context, node: fx.Node, a: Any, b: Any) -> Axes:
    left, right = ctx.of(a), ctx.of(b)
    if len(left) == 1:
        left = (dims.ONE, *left)
    if len(right) == 1:
        right = (*right, dims.ONE)
    both = ctx.activation(a) and ctx.activation(b)
    batch = _batch(ctx, node, (a, left), (b, right), both)
    rows, columns = left[-2], right[-1]
    contract(ctx, node, a, left[-1], b, right[-2], (columns,) if ctx.activation(a) else (rows,))
    ctx.flow(a, rows, node)
    ctx.flow(b, columns, node)
    if both:
        shares = not ctx.copies.isdisjoint((a, b))
        for back, layout in enumerate(reversed(batch), 3):
            ctx.tag(layout, "batch")
            sizes = [axes[-back].size for axes in (left, right) if len(axes) >= back]
            if not shares and sizes.count(layout.size) == 2:
                ctx.tag(layout, "own")
        ctx.tag(columns, "outer")
    mine = (rows,) if len(ctx.of(a)) > 1 else ()
    theirs = (columns,) if len(ctx.of(b)) > 1 else ()
    return (*batch, *mine, *theirs)


def _batch(
    ctx: Context, node: fx.Node, a: tuple[Any, Axes], b: tuple[Any, Axes], both: bool
) -> list[Layout]:
    """The axes before the matrices, broadcast from the right."""
    batch: list[Layout] = []
    for back in range(max(len(a[1]), len(b[1])), 2, -1):
        mine, theirs = (axes[-back] if len(axes) >= back else dims.ONE for _, axes in (a, b))
        if mine.size > 1 and theirs.size > 1:
            ctx.unify(mine, theirs, node)
        elif both:
            # One key/value head that serves every query head.
            ctx.tag(mine if mine.size > 1 else theirs, "repeat")
        merged = mine if mine.size > 1 else theirs
        for (operand, _), layout in ((a, mine), (b, theirs)):
            if layout.size > 1:
                ctx.flow(operand, layout, node, to=merged)
        batch.append(merged)
    return batch


@register_op(aten.tensordot, aten.inner, aten.outer)
def tensordot(ctx: Context, node: fx.Node) -> Axes:
    """The named axes of both are contracted; the others follow one another."""
    given: Any = node.args
    a, b = given[:2]
    left, right = ctx.of(a), ctx.of(b)
    if node.target is aten.tensordot.default:
        pairs = [(i % len(left), j % len(right)) for i, j in zip(given[2], given[3], strict=True)]
    elif node.target is aten.outer.default:
        pairs = []
    else:
        pairs = [(len(left) - 1, len(right) - 1)]
    rows = tuple(x for i, x in enumerate(left) if i not in {i for i, _ in pairs})
    columns = tuple(x for j, x in enumerate(right) if j not in {j for _, j in pairs})
    for i, j in pairs:
        contract(ctx, node, a, left[i], b, right[j], columns if ctx.activation(a) else rows)
    for operand, passing in ((a, rows), (b, columns)):
        for layout in passing:
            ctx.flow(operand, layout, node)
    return (*rows, *columns)


def _linear_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    return sizes.elements(node) * sizes.axes(argument(node, "weight"))[1]


def _matmul_macs(name: str) -> Macs:
    """Every element of the output is a sum over the last axis of the operand of that name."""

    def rule(sizes: AxisSizes, node: fx.Node) -> Polynomial:
        return sizes.elements(node) * sizes.axes(argument(node, name))[-1]

    return rule


def _tensordot_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    axes = sizes.axes(argument(node, "self"))
    return sizes.elements(node) * product(axes[i] for i in argument(node, "dims_self"))


register_op(
    aten.linear,
    product=MatrixProduct("input", "weight", 1, 0, -1),
    contracts=True,
    macs=_linear_macs,
)
register_op(aten.mm, product=MatrixProduct("self", "mat2", 0, 1, -1))
register_op(aten.matmul, product=MatrixProduct("self", "other", 0, 1, -1))
register_op(
    aten.addmm,
    product=MatrixProduct("mat1", "mat2", 0, 1, -1, bias="self"),
    contracts=True,
    macs=_matmul_macs("mat1"),
)
register_op(
    aten.mm, aten.matmul, aten.bmm, aten.mv, aten.dot, aten.inner,
    contracts=True, macs=_matmul_macs("self"),
)  # fmt: skip
register_op(aten.addmv, contracts=True, macs=_matmul_macs("mat"))
register_op(aten.baddbmm, contracts=True, macs=_matmul_macs("batch1"))
register_op(aten.tensordot, contracts=True, macs=_tensordot_macs)
register_op(
    aten.vdot, aten.addbmm, aten.bilinear, aten.cdist, aten._cdist_forward, aten.pdist,
    aten._pdist_forward, contracts=True,
)  # fmt: skip
