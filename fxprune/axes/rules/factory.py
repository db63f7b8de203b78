"""Tensors made from sizes: fresh dims, mended on rewriting if they turn out to be pruned."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.axes.context import Context
from fxprune.axes.dims import Axes, Dim
from fxprune.axes.registry import register_rule

aten = torch.ops.aten


@register_rule(
    aten.zeros,
    aten.ones,
    aten.full,
    aten.empty,
    aten.rand,
    aten.randn,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
    aten.scalar_tensor,
)
def filled(ctx: Context, node: fx.Node) -> Axes:
    """Every unit is like the others: a smaller size will do."""
    return ctx.fresh(node)


@register_rule(aten.arange)
def counted(ctx: Context, node: fx.Node) -> Axes:
    """Unit k has value k: pruned units are taken out of the full range (ALiBi slopes)."""
    (size, free), *_ = ctx.shape(node)
    reason = ctx.why("numbers along a symbolic axis", node) if free else None
    return (Dim(size, free, reason),)


@register_rule(aten.linspace, aten.eye, aten.randperm)
def numbered(ctx: Context, node: fx.Node) -> Axes:
    """Values depend on the size as a whole."""
    return ctx.fresh(node, ctx.why("values depend on the size of this axis", node))
