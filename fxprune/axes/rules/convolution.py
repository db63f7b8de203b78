"""Convolutions and pooling: channels are features, groups are an outer factor, pixels are fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.context import Context
from fxprune.axes.dims import Dim, Layout, Product
from fxprune.axes.registry import Axes, register_rule

aten = torch.ops.aten
_PLACE_OF_GROUPS = 6


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(ctx: Context, node: fx.Node) -> Axes:
    """x (batch, in, ...), weight (out, in / groups, ...), bias (out)."""
    x, weight = node.args[:2]
    bias: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    given: Any = node.args[_PLACE_OF_GROUPS:] or (node.kwargs.get("groups", 1),)
    groups = int(given[0])
    spatial = len(ctx.of(weight)) - 2
    lead = ctx.of(x)[: -spatial - 1]
    channels, (out, inner) = ctx.of(x)[-spatial - 1], ctx.of(weight)[:2]
    for layout in (*ctx.of(x)[-spatial:], *ctx.of(weight)[2:]):
        ctx.freeze(layout, "a convolution window slides over this axis", node)
    if groups == 1:
        ctx.unify(channels, inner, node)
        ctx.align(x, channels, weight, inner)  # type: ignore[arg-type]
        ctx.flow(x, channels, node, "all", out)  # type: ignore[arg-type]
    else:
        blocks = Dim(groups)
        ctx.unify(channels, Product((blocks, inner)), node)
        per_block: Layout = Dim(out.size // groups)
        ctx.unify(out, Product((blocks, per_block)), node)
        ctx.notes[node, "groups"] = blocks
        if inner.size > 1:
            ctx.align(x, inner, weight, inner)  # type: ignore[arg-type]
            ctx.flow(x, inner, node, "all", per_block)  # type: ignore[arg-type]
        ctx.flow(x, blocks, node)  # type: ignore[arg-type]
    ctx.flow(weight, out, node)  # type: ignore[arg-type]
    if isinstance(bias, fx.Node):
        ctx.unify(out, ctx.of(bias)[0], node)
        ctx.flow(bias, ctx.of(bias)[0], node, to=out)
    for layout in lead:
        ctx.flow(x, layout, node)  # type: ignore[arg-type]
    ctx.tag(channels, "convolution")
    ctx.tag(out, "convolution")
    reason = ctx.why("a convolution window slides over this axis", node)
    return (*lead, out, *ctx.fresh(node, reason)[-spatial:])


@register_rule(
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d,
    aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten.upsample_bilinear2d, aten.upsample_bicubic2d,
)  # fmt: skip
def pooling(ctx: Context, node: fx.Node) -> Axes:
    """Windows over the last axes; channels pass."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    name = str(node.target).split(".")[1]
    spatial = int(name.removesuffix("d")[-1])
    for layout in axes[-spatial:]:
        ctx.freeze(layout, "a pooling window slides over this axis", node)
    fresh = ctx.fresh(node, ctx.why("a pooling window slides over this axis", node))
    kept = tuple(dims.ONE if x.size == 1 else x for x in fresh[-spatial:])
    return (*axes[:-spatial], *kept)


@register_rule(aten.max_pool2d_with_indices)
def pooling_with_indices(ctx: Context, node: fx.Node) -> list[Axes]:
    """As pooling, with the winners' places as a second output."""
    source: Any = node.args[0]
    reason = ctx.why("a pooling window slides over this axis", node)
    for layout in ctx.of(source)[-2:]:
        ctx.freeze(layout, "a pooling window slides over this axis", node)
    out = (*ctx.of(source)[:-2], *ctx.fresh(node.meta["val"][0], reason)[-2:])
    return [out, out]
