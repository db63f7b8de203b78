"""Ops of pictures that move units between channels and pixels, or sample pixels by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Axes, Dim, Layout, Product
from fxprune.ops.context import Context
from fxprune.ops.convolution import convolution_groups
from fxprune.ops.op import register_op
from fxprune.ops.patching import patches
from fxprune.trace.arguments import argument

aten = torch.ops.aten


def _pixels(ctx: Context, node: fx.Node, source: Axes, what: str, count: int) -> Axes:
    """The last axes of the result, where those of the operand are pixels too."""
    for layout in source[-count:]:
        ctx.freeze(layout, what, node)
    return ctx.fresh(node, ctx.why(what, node))[-count:]


@register_op(aten.pixel_shuffle)
def pixel_shuffle(ctx: Context, node: fx.Node) -> Axes:
    """(..., channels x r x r, height, width) to (..., channels, height x r, width x r)."""
    source: Any = node.args[0]
    *lead, channels, _, _ = ctx.of(source)
    what = "channels become pixels"
    inside = int(argument(node, "upscale_factor")) ** 2
    outer = Dim(channels.size // inside)
    ctx.unify(channels, Product((outer, Dim(inside, reason=ctx.why(what, node)))), node)
    return (*lead, outer, *_pixels(ctx, node, ctx.of(source), what, 2))


@register_op(aten.pixel_unshuffle)
def pixel_unshuffle(ctx: Context, node: fx.Node) -> Axes:
    """(..., channels, height x r, width x r) to (..., channels x r x r, height, width)."""
    source: Any = node.args[0]
    *lead, channels, _, _ = ctx.of(source)
    what = "pixels become channels"
    inside = Dim(int(argument(node, "downscale_factor")) ** 2, reason=ctx.why(what, node))
    out = Product((channels, inside))
    return (*lead, out, *_pixels(ctx, node, ctx.of(source), what, 2))


@register_op(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(ctx: Context, node: fx.Node) -> Axes:
    """Channels are (groups x channels of a group) and come out the other way round."""
    source: Any = node.args[0]
    batch, channels, *pixels = ctx.of(source)
    count = int(argument(node, "groups"))
    groups, inner = Dim(count), Dim(channels.size // count)
    ctx.unify(channels, Product((groups, inner)), node)
    ctx.notes[node, "groups"] = groups
    return (batch, Product((inner, groups)), *pixels)


@register_op(aten.im2col)
def im2col(ctx: Context, node: fx.Node) -> Axes:
    """(..., channels, height, width) to (..., channels x window, places)."""
    source: Any = node.args[0]
    *lead, channels, _, _ = ctx.of(source)
    what = "a window slides over this axis"
    height, width = argument(node, "kernel_size")
    (places,) = _pixels(ctx, node, ctx.of(source)[-2:], what, 2)[-1:]
    return (*lead, Product((channels, Dim(height * width, reason=ctx.why(what, node)))), places)


@register_op(aten.col2im)
def col2im(ctx: Context, node: fx.Node) -> Axes:
    """(..., channels x window, places) to (..., channels, height, width)."""
    source: Any = node.args[0]
    *lead, merged, places = ctx.of(source)
    what = "a window slides over this axis"
    height, width = argument(node, "kernel_size")
    channels: Layout = Dim(merged.size // (height * width))
    window = Dim(height * width, reason=ctx.why(what, node))
    ctx.unify(merged, Product((channels, window)), node)
    ctx.freeze(places, what, node)
    return (*lead, channels, *ctx.fresh(node, ctx.why(what, node))[-2:])


@register_op(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sampler(ctx: Context, node: fx.Node) -> Axes:
    """(batch, channels, ...) at the places that a grid (batch, ..., 2 or 3) names."""
    source, grid = node.args[:2]
    batch, channels, *pixels = ctx.of(source)
    for layout in (*pixels, ctx.of(grid)[-1]):
        ctx.freeze(layout, "sampled by position", node)
    ctx.unify(batch, ctx.of(grid)[0], node)
    return (batch, channels, *ctx.of(grid)[1:-1])


patches(aten.channel_shuffle, aten.native_channel_shuffle)(convolution_groups)
