"""Normalisation: scales, shifts and running statistics follow the normalised axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Axes, Dim, Product
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten


@register_op(aten.layer_norm, aten.rms_norm)
def layer_norm(ctx: Context, node: fx.Node) -> Axes:
    """Mean and variance over the last axes, so units are only normalised together."""
    return _over_last(ctx, node)


def _over_last(ctx: Context, node: fx.Node) -> Axes:
    given: Any = node.args
    x, shape, *parameters = given
    axes = ctx.of(x)
    count = len(shape)
    for layout in axes[-count:]:
        ctx.tag(layout, "normalised")
    for parameter in parameters[:2]:
        if isinstance(parameter, fx.Node):
            for mine, theirs in zip(axes[-count:], ctx.of(parameter), strict=True):
                ctx.unify(mine, theirs, node)
    return axes


@register_op(aten.native_layer_norm)
def native_layer_norm(ctx: Context, node: fx.Node) -> list[Axes]:
    """As layer_norm, with the mean and the reciprocal deviation as further outputs."""
    return _with_statistics(ctx, node, _over_last(ctx, node))


def _with_statistics(ctx: Context, node: fx.Node, axes: Axes) -> list[Axes]:
    values = node.meta["val"]
    return [axes, *(ctx.fresh(value, "statistics of a norm") for value in values[1:])]


@register_op(aten.batch_norm, aten.instance_norm)
def batch_norm(ctx: Context, node: fx.Node) -> Axes:
    """One scale, shift, mean and variance a channel (axis 1): exact channel by channel."""
    return _over_channels(ctx, node)


def _over_channels(ctx: Context, node: fx.Node) -> Axes:
    x, *vectors = node.args[:5]
    if argument(node, "use_input_stats") or argument(node, "training"):
        _averaged(ctx, x)
    for vector in vectors:
        _along_channels(ctx, node, x, vector)
    return ctx.of(x)


@register_op(
    aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training
)
def native_batch_norm(ctx: Context, node: fx.Node) -> list[Axes]:
    """As batch_norm, with the mean and the reciprocal deviation as further outputs."""
    return _with_statistics(ctx, node, _over_channels(ctx, node))


@register_op(aten.group_norm)
def group_norm(ctx: Context, node: fx.Node) -> Axes:
    """Channels are (groups x channels of a group); inside a group they are normalised together."""
    x, count, *vectors = node.args
    return _in_groups(ctx, node, x, count, vectors[:2])


@register_op(aten.native_group_norm)
def native_group_norm(ctx: Context, node: fx.Node) -> list[Axes]:
    """As group_norm, with the mean and the reciprocal deviation as further outputs."""
    x, *vectors = node.args[:3]
    return _with_statistics(ctx, node, _in_groups(ctx, node, x, node.args[6], vectors))


def _in_groups(ctx: Context, node: fx.Node, x: Any, count: Any, vectors: Iterable[Any]) -> Axes:
    channels = ctx.of(x)[1]
    groups, inner = Dim(int(count)), Dim(channels.size // int(count))
    ctx.unify(channels, Product((groups, inner)), node)
    ctx.tag(inner, "normalised")
    _averaged(ctx, x)
    ctx.notes[node, "groups"] = groups
    for vector in vectors:
        _along_channels(ctx, node, x, vector)
    return ctx.of(x)


@register_op(aten._weight_norm)
def weight_norm(ctx: Context, node: fx.Node) -> Axes:
    """``v * g / norm(v)``: over all axes but one, of which g has a factor each, or over all."""
    v, g = node.args[:2]
    for mine, theirs in zip(ctx.of(v), ctx.of(g), strict=False):
        if theirs.size > 1:
            ctx.unify(mine, theirs, node)
    return ctx.of(v)


def _averaged(ctx: Context, x: Any) -> None:
    """The axes after the channels are averaged too."""
    for layout in ctx.of(x)[2:]:
        ctx.tag(layout, "normalised")


def _along_channels(ctx: Context, node: fx.Node, x: Any, vector: Any) -> None:
    if isinstance(vector, fx.Node):
        ctx.unify(ctx.of(x)[1], ctx.of(vector)[0], node)


@patches(aten.layer_norm, aten.rms_norm, aten.native_layer_norm)
def normalized_shape(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """``normalized_shape``."""
    source: Any = old.args[0]
    shape: Any = new.args[1]
    new.update_arg(1, [resize.size(layout) for layout in resize.axes(source)[-len(shape) :]])


@patches(aten.group_norm)
def group_norm_groups(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The number of groups."""
    new.update_arg(1, resize.size(resize.inferred.notes[old, "groups"]))


@patches(aten.native_group_norm)
def native_group_norm_sizes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The numbers of channels, of places in each and of groups."""
    source: Any = old.args[0]
    _, channels, *places = resize.axes(source)
    new.update_arg(4, resize.size(channels))
    if any(map(resize.changed, places)):
        new.update_arg(5, math.prod(map(resize.size, places)))
    new.update_arg(6, resize.size(resize.inferred.notes[old, "groups"]))


# Zeroed units would still be counted.
register_op(
    aten.layer_norm, aten.rms_norm, aten.native_layer_norm, aten.instance_norm, aten._weight_norm,
    reduces=True,
)  # fmt: skip
# In evaluation mode it averages nothing.
register_op(
    aten.batch_norm, aten.native_batch_norm, aten._native_batch_norm_legit,
    reduces=lambda node: bool(argument(node, "training")),
)  # fmt: skip
