"""Element by element: broadcast-aligned axes are the same axis."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.axes.context import Context
from fxprune.axes.registry import Axes, register_rule

aten = torch.ops.aten


@register_rule(
    torch.Tag.pointwise,
    aten.to,
    aten._to_copy,
    aten.type_as,
    aten.contiguous,
    aten.clone,
    aten.alias,
    aten.detach,
    aten.lift_fresh_copy,
    aten.dropout,
    aten.alpha_dropout,
    aten.feature_dropout,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.empty_like,
    aten.rand_like,
    aten.randn_like,
    getattr(aten, "__and__"),
    getattr(aten, "__or__"),
    getattr(aten, "__xor__"),
    aten.fill,
    aten.float_power,
    aten.copy,
    aten.copy_,
)
def pointwise(ctx: Context, node: fx.Node) -> Axes:
    """Every operand's axes unify with the output's, sizes of 1 excepted."""
    operands = [n for n in node.all_input_nodes if n in ctx.axes]
    return ctx.broadcast(node, operands, len(ctx.shape(node)))


@register_rule(aten.prelu)
def prelu(ctx: Context, node: fx.Node) -> Axes:
    """The slope is one number, or one for each channel (axis 1)."""
    x, slope = node.args
    if ctx.of(slope)[0].size > 1:
        ctx.unify(ctx.of(x)[1], ctx.of(slope)[0], node)
    return ctx.of(x)
