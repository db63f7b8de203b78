"""Matrix products: the contracted axes are one axis, the batch axes are one, the rest pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.context import Context
from fxprune.axes.dims import Layout
from fxprune.axes.registry import Axes, register_rule

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


@register_rule(aten.linear)
def linear(ctx: Context, node: fx.Node) -> Axes:
    """``y = x W^T + b``: x (..., in), W (out, in), b (out)."""
    x, weight, *bias = node.args
    out = ctx.of(weight)[0]
    contract(ctx, node, x, ctx.of(x)[-1], weight, ctx.of(weight)[1], (out,))
    ctx.flow(weight, out, node)
    if bias and bias[0] is not None:
        ctx.unify(out, ctx.of(bias[0])[0], node)
        ctx.flow(bias[0], ctx.of(bias[0])[0], node, to=out)
    for layout in ctx.of(x)[:-1]:
        ctx.flow(x, layout, node)
    return (*ctx.of(x)[:-1], out)


@register_rule(aten.mm, aten.bmm, aten.matmul)
def matmul(ctx: Context, node: fx.Node) -> Axes:
    """``a @ b`` with any ranks."""
    a, b = node.args
    return _product(ctx, node, a, b)


@register_rule(aten.addmm, aten.baddbmm)
def addmm(ctx: Context, node: fx.Node) -> Axes:
    """``beta * c + alpha * (a @ b)``."""
    c, a, b = node.args[:3]
    out = _product(ctx, node, a, b)
    for mine, theirs in zip(reversed(out), reversed(ctx.of(c)), strict=False):
        if theirs.size > 1:
            ctx.unify(mine, theirs, node)
            ctx.flow(c, theirs, node, to=mine)
    return out


def _product(ctx: Context, node: fx.Node, a: Any, b: Any) -> Axes:
    left, right = ctx.of(a), ctx.of(b)
    if len(left) == 1:
        left = (dims.ONE, *left)
    if len(right) == 1:
        right = (*right, dims.ONE)
    both = ctx.activation(a) and ctx.activation(b)
    rank = max(len(left), len(right)) - 2
    batch: list[Layout] = []
    for back in range(rank + 2, 2, -1):
        mine = left[-back] if len(left) >= back else dims.ONE
        theirs = right[-back] if len(right) >= back else dims.ONE
        if mine.size > 1 and theirs.size > 1:
            ctx.unify(mine, theirs, node)
        elif both:
            # One key/value head that serves every query head.
            ctx.tag(mine if mine.size > 1 else theirs, "repeat")
        merged = mine if mine.size > 1 else theirs
        if mine.size > 1:
            ctx.flow(a, mine, node, to=merged)
        if theirs.size > 1:
            ctx.flow(b, theirs, node, to=merged)
        batch.append(merged)
    rows, columns = left[-2], right[-1]
    features = (columns,) if ctx.activation(a) else (rows,)
    contract(ctx, node, a, left[-1], b, right[-2], features)
    ctx.flow(a, rows, node)
    ctx.flow(b, columns, node)
    if both:
        for layout in batch:
            ctx.tag(layout, "batch")
        ctx.tag(columns, "outer")
    out = [*batch]
    if len(ctx.of(a)) > 1:
        out.append(rows)
    if len(ctx.of(b)) > 1:
        out.append(columns)
    return tuple(out)


@register_rule(aten.einsum)
def einsum(ctx: Context, node: fx.Node) -> Axes:
    """Equal letters are one axis. Letters that only operands have are contracted."""
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    terms, arrow, output = equation.partition("->")
    inputs = terms.split(",")
    if "." in equation or not arrow:
        for operand in operands:
            for layout in ctx.of(operand):
                ctx.freeze(layout, "einsum with an ellipsis or without an output", node)
        return ctx.fresh(node, ctx.why("einsum with an ellipsis or without an output", node))
    letters: dict[str, Layout] = {}
    owners: dict[str, list[tuple[Any, Layout]]] = {}
    for term, operand in zip(inputs, operands, strict=True):
        for letter, layout in zip(term, ctx.of(operand), strict=True):
            owners.setdefault(letter, []).append((operand, layout))
            if layout.size == 1:
                continue
            if letter in letters:
                ctx.unify(letters[letter], layout, node)
            else:
                letters[letter] = layout
    both = sum(ctx.activation(o) for o in operands) > 1
    result = tuple(letters.get(letter, dims.ONE) for letter in output)
    for letter, layout in letters.items():
        shared = len(owners[letter]) > 1
        if letter in output:
            for owner, own in owners[letter]:
                ctx.flow(owner, own, node, to=layout)
            if both:
                ctx.tag(layout, "batch" if shared else "outer")
            continue
        (first, own), *rest = owners[letter]
        if not rest:
            ctx.tag(own, "normalised")
        features = tuple(letters[x] for x in output if x in letters and len(owners[x]) == 1)
        for other, theirs in rest:
            contract(ctx, node, first, own, other, theirs, features)
    return result
