"""Convolutions and pooling: channels are features, groups are an outer factor, pixels are fixed."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout, Product
from fxprune.axes.polynomial import Polynomial, product
from fxprune.ops.context import Context
from fxprune.ops.contraction import contract
from fxprune.ops.op import AxisSizes, MatrixProduct, register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten
CONVOLUTIONS = (
    aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution,
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
)  # fmt: skip
_RANK = re.compile(r"(\d)d")


_SLIDES = "a convolution window slides over this axis"


@register_op(*CONVOLUTIONS)
def convolution(ctx: Context, node: fx.Node) -> Axes:
    """Input (batch, in, ...), weight (out, in / groups, ...) or, transposed, the other way."""
    x: Any = node.args[0]
    weight: Any = node.args[1]
    bias: Any = argument(node, "bias")
    groups = int(argument(node, "groups"))
    spatial = len(ctx.of(weight)) - 2
    lead, channels = ctx.of(x)[: -spatial - 1], ctx.of(x)[-spatial - 1]
    for layout in (*ctx.of(x)[-spatial:], *ctx.of(weight)[2:]):
        ctx.freeze(layout, _SLIDES, node)
    # The weight's first axis has the channels of all groups, its second those of one.
    whole, part = ctx.of(weight)[:2]
    blocks: Layout = dims.ONE
    inner = whole
    if groups > 1:
        blocks, inner = Dim(groups), Dim(whole.size // groups)
        ctx.unify(whole, Product((blocks, inner)), node)
        ctx.notes[node, "groups"] = blocks
        ctx.flow(x, blocks, node)
    incoming, outgoing = (inner, part) if transposes(node) else (part, inner)
    ctx.unify(channels, Product((blocks, incoming)), node)
    if incoming.size > 1 or groups == 1:
        ctx.align(x, incoming, weight, incoming)
        ctx.flow(x, incoming, node, "all", outgoing)
    out = dims.resolve(Product((blocks, outgoing)))
    ctx.flow(weight, out, node)
    if isinstance(bias, fx.Node):
        ctx.unify(out, ctx.of(bias)[0], node)
        ctx.flow(bias, ctx.of(bias)[0], node, to=out)
    for layout in lead:
        ctx.flow(x, layout, node)
    ctx.tag(channels, "convolution")
    ctx.tag(out, "convolution")
    if spatial == 1 and groups == whole.size == channels.size:
        ctx.tag(channels, "depthwise")
    return (*lead, out, *ctx.fresh(node, ctx.why(_SLIDES, node))[-spatial:])


def transposes(node: fx.Node) -> bool:
    """Whether a convolution is a transposed one."""
    return "transpose" in str(node.target) or bool(argument(node, "transposed"))


@register_op(aten.conv_tbc)
def convolution_last(ctx: Context, node: fx.Node) -> Axes:
    """Input (time, batch, in), weight (window, in, out), bias (out)."""
    x, weight, bias = node.args[:3]
    for layout in (ctx.of(x)[0], ctx.of(weight)[0]):
        ctx.freeze(layout, _SLIDES, node)
    out = ctx.of(weight)[2]
    contract(ctx, node, x, ctx.of(x)[2], weight, ctx.of(weight)[1], (out,))
    ctx.unify(out, ctx.of(bias)[0], node)
    for value, layout in ((weight, out), (bias, out), (x, ctx.of(x)[1])):
        ctx.flow(value, layout, node)  # type: ignore[arg-type]
    ctx.tag(out, "convolution")
    (time, free), *_ = ctx.shape(node)
    return (Dim(time, free, ctx.why(_SLIDES, node)), ctx.of(x)[1], out)


@register_op(
    aten.max_pool1d, aten.max_pool2d, aten.max_pool3d,
    aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d,
    aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d,
    aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d,
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d,
    aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d,
    aten.upsample_bicubic2d, aten.upsample_trilinear3d,
    aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa,
    aten.max_unpool2d, aten.max_unpool3d,
)  # fmt: skip
def pooling(ctx: Context, node: fx.Node) -> Axes:
    """Windows over the last axes; channels pass."""
    return _windows(ctx, node, node.meta["val"])


@register_op(
    aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
    aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d,
    aten.fractional_max_pool2d, aten.fractional_max_pool3d,
)  # fmt: skip
def pooling_with_indices(ctx: Context, node: fx.Node) -> list[Axes]:
    """As pooling, with the winners' places as a second output."""
    out = _windows(ctx, node, node.meta["val"][0])
    samples = argument(node, "random_samples")
    if isinstance(samples, fx.Node):
        for mine, theirs in zip(out, ctx.of(samples)[:2], strict=False):
            ctx.unify(mine, theirs, node)
    return [out, out]


def _windows(ctx: Context, node: fx.Node, value: torch.Tensor) -> Axes:
    source: Any = node.args[0]
    axes = ctx.of(source)
    spatial = int(_RANK.findall(str(node.target))[0])
    for layout in axes[-spatial:]:
        ctx.freeze(layout, "a pooling window slides over this axis", node)
    reason = ctx.why("a pooling window slides over this axis", node)
    return (*axes[:-spatial], *ctx.fresh(value, reason)[-spatial:])


@patches(
    aten.conv1d, aten.conv2d, aten.conv3d,
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d, aten.convolution,
)  # fmt: skip
def convolution_groups(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The number of groups."""
    blocks = resize.inferred.notes.get((old, "groups"))
    if blocks is None:
        return
    names = [parameter.name for parameter in new.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index("groups")
    if len(new.args) > place:
        new.update_arg(place, resize.size(blocks))
    else:
        new.update_kwarg("groups", resize.size(blocks))


def _convolution_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    window = product(sizes.axes(argument(node, "weight"))[1:])
    turned = transposes(node)
    return sizes.elements(argument(node, "input") if turned else node) * window


register_op(
    aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution,
    product=MatrixProduct("input", "weight", 1, 0, 1), contracts=True, macs=_convolution_macs,
)  # fmt: skip
register_op(
    aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    product=MatrixProduct("input", "weight", 0, 1, 1), contracts=True, macs=_convolution_macs,
)  # fmt: skip
