"""Fused attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout, Product
from fxprune.axes.polynomial import Polynomial, product
from fxprune.ops.context import Context
from fxprune.ops.contraction import contract
from fxprune.ops.op import AxisSizes, register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten


@register_op(aten.scaled_dot_product_attention)
def attention(ctx: Context, node: fx.Node) -> Axes:
    """``softmax(q k^T / sqrt(d) + mask) v``, the mask's heads being the heads.

    q (..., heads, queries, d), k (..., kv, keys, d), v (..., kv, keys, e) to (..., queries, e).
    """
    given: Any = node.args
    q, k, v = given[:3]
    mask = argument(node, "attn_mask")
    contract(ctx, node, q, ctx.of(q)[-1], k, ctx.of(k)[-1], ())
    ctx.unify(ctx.of(k)[-2], ctx.of(v)[-2], node)
    ctx.align(k, ctx.of(k)[-2], v, ctx.of(v)[-2])
    batch = tuple(_heads(ctx, node, (q, k, v), back) for back in range(len(ctx.of(q)), 2, -1))
    keys = ctx.of(k)[-2]
    ctx.freeze(keys, "softmax over this axis", node)
    if isinstance(mask, fx.Node):
        scores = (*batch, ctx.of(q)[-2], keys)
        for mine, theirs in zip(reversed(scores), reversed(ctx.of(mask)), strict=False):
            if theirs.size > 1:
                ctx.unify(mine, theirs, node)
                ctx.flow(mask, theirs, node, to=mine)
    for layout in batch:
        ctx.tag(layout, "batch")
        ctx.tag(layout, "softmax")
    if v not in ctx.copies:
        for layout in ctx.of(v)[:-2]:
            ctx.tag(layout, "own")
    ctx.tag(ctx.of(v)[-1], "outer")
    ctx.flow(q, ctx.of(q)[-2], node)
    ctx.flow(v, ctx.of(v)[-1], node)
    return (*batch, ctx.of(q)[-2], ctx.of(v)[-1])


def _heads(ctx: Context, node: fx.Node, operands: tuple[Any, Any, Any], back: int) -> Layout:
    """One batch axis: equal, broadcast, or query heads over their key/value heads."""
    query = ctx.of(operands[0])[-back]
    for operand in operands[1:]:
        theirs = ctx.of(operand)[-back] if len(ctx.of(operand)) >= back else dims.ONE
        if query.size == 1:
            query = theirs  # one set of queries for every batch
        elif theirs.size == query.size:
            ctx.unify(query, theirs, node)
        elif theirs.size > 1:
            repeat = Dim(query.size // theirs.size)
            ctx.unify(query, Product((theirs, repeat)), node)
            ctx.tag(repeat, "repeat")
        else:
            ctx.tag(query, "repeat")
        if theirs.size > 1:
            ctx.flow(operand, theirs, node)
    if ctx.of(operands[0])[-back].size > 1:
        ctx.flow(operands[0], query, node)
    return query


@patches(aten.scaled_dot_product_attention)
def attention_scale(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The implicit scale 1/sqrt(d) of the original head size becomes explicit."""
    query: Any = old.args[0]
    layout = resize.axes(query)[-1]
    if resize.changed(layout) and argument(new, "scale") is None:
        new.update_kwarg("scale", float(layout.size) ** -0.5)


def _attention_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    """Scores and their product with the values, for every query head; no causal halving."""
    *rows, width = sizes.axes(node)
    query, key = argument(node, "query"), argument(node, "key")
    return product(rows) * sizes.axes(key)[-2] * (sizes.axes(query)[-1] + width)


register_op(aten.scaled_dot_product_attention, contracts=True, macs=_attention_macs)
