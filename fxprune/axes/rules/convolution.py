"""Convolutions and pooling: channels are features, groups are an outer factor, pixels are fixed."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from fxprune.axes.context import Context
from fxprune.axes.dims import Dim, Layout, Product
from fxprune.axes.registry import Axes, register_rule
from fxprune.trace.arguments import argument

aten = torch.ops.aten
_RANK = re.compile(r"(\d)d")


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(ctx: Context, node: fx.Node) -> Axes:
    """Input (batch, in, ...), weight (out, in / groups, ...), bias (out)."""
    x: Any = node.args[0]
    weight: Any = node.args[1]
    bias: Any = argument(node, "bias")
    groups = int(argument(node, "groups"))
    spatial = len(ctx.of(weight)) - 2
    lead = ctx.of(x)[: -spatial - 1]
    channels, (out, inner) = ctx.of(x)[-spatial - 1], ctx.of(weight)[:2]
    for layout in (*ctx.of(x)[-spatial:], *ctx.of(weight)[2:]):
        ctx.freeze(layout, "a convolution window slides over this axis", node)
    if groups == 1:
        ctx.unify(channels, inner, node)
        ctx.align(x, channels, weight, inner)
        ctx.flow(x, channels, node, "all", out)
    else:
        blocks = Dim(groups)
        ctx.unify(channels, Product((blocks, inner)), node)
        per_block: Layout = Dim(out.size // groups)
        ctx.unify(out, Product((blocks, per_block)), node)
        ctx.notes[node, "groups"] = blocks
        if inner.size > 1:
            ctx.align(x, inner, weight, inner)
            ctx.flow(x, inner, node, "all", per_block)
        ctx.flow(x, blocks, node)
    ctx.flow(weight, out, node)
    if isinstance(bias, fx.Node):
        ctx.unify(out, ctx.of(bias)[0], node)
        ctx.flow(bias, ctx.of(bias)[0], node, to=out)
    for layout in lead:
        ctx.flow(x, layout, node)
    ctx.tag(channels, "convolution")
    ctx.tag(out, "convolution")
    reason = ctx.why("a convolution window slides over this axis", node)
    return (*lead, out, *ctx.fresh(node, reason)[-spatial:])


@register_rule(
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d,
    aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d,
    aten.upsample_bicubic2d, aten.upsample_trilinear3d,
)  # fmt: skip
def pooling(ctx: Context, node: fx.Node) -> Axes:
    """Windows over the last axes; channels pass."""
    return _windows(ctx, node, node.meta["val"])


@register_rule(
    aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
    aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d,
)  # fmt: skip
def pooling_with_indices(ctx: Context, node: fx.Node) -> list[Axes]:
    """As pooling, with the winners' places as a second output."""
    out = _windows(ctx, node, node.meta["val"][0])
    return [out, out]


def _windows(ctx: Context, node: fx.Node, value: torch.Tensor) -> Axes:
    source: Any = node.args[0]
    axes = ctx.of(source)
    spatial = int(_RANK.findall(str(node.target))[0])
    for layout in axes[-spatial:]:
        ctx.freeze(layout, "a pooling window slides over this axis", node)
    reason = ctx.why("a pooling window slides over this axis", node)
    return (*axes[:-spatial], *ctx.fresh(value, reason)[-spatial:])
