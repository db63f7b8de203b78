"""Reductions: the axis is gone (or 1). Sums and means allow pruning, extremes and order do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.context import Context
from fxprune.axes.registry import Axes, register_rule

aten = torch.ops.aten


def _axes_of(node: fx.Node, rank: int) -> list[int]:
    """The reduced axes, non-negative; all of them where none are given."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [axis % rank for axis in ([given] if isinstance(given, int) else given)]


def _reduced(ctx: Context, node: fx.Node, axes: list[int]) -> Axes:
    """Output axes for any spelling of ``keepdim``: compare ranks."""
    source: Any = node.args[0]
    value = node.meta["val"]
    first = value[0] if isinstance(value, list | tuple) else value
    keep = len(first.shape) == len(ctx.of(source))
    return tuple(
        dims.ONE if axis in axes else layout
        for axis, layout in enumerate(ctx.of(source))
        if keep or axis not in axes
    )


@register_rule(
    aten.mean, aten.sum, aten.var, aten.std, aten.norm, aten.linalg_vector_norm, aten.nansum
)
def total(ctx: Context, node: fx.Node) -> Axes:
    """Units are summed: they can go, but the result is not that of zeroed units."""
    source: Any = node.args[0]
    if node.target in (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim):
        given: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
        rank = len(ctx.of(source))
        given = range(rank) if given in (None, []) else given
        axes = [a % rank for a in ([given] if isinstance(given, int) else given)]
    elif "correction" in str(node.target) or "dim" in str(node.target) or len(node.args) == 1:
        axes = _axes_of(node, len(ctx.of(source)))
    else:
        axes = list(range(len(ctx.of(source))))
    for axis in axes:
        ctx.tag(ctx.of(source)[axis], "normalised")
    return _reduced(ctx, node, axes)


@register_rule(
    aten.max.dim, aten.min.dim, aten.amax, aten.amin, aten.argmax, aten.argmin, aten.logsumexp,
    aten.prod.dim_int, aten.any.dim, aten.all.dim, aten.median.dim,
)  # fmt: skip
def extreme(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """The result depends on which units are there: the axis is frozen."""
    source: Any = node.args[0]
    axes = _axes_of(node, len(ctx.of(source)))
    for axis in axes:
        ctx.freeze(ctx.of(source)[axis], f"{node.target} over this axis", node)
    out = _reduced(ctx, node, axes)
    value = node.meta["val"]
    return [out] * len(value) if isinstance(value, list | tuple) else out


@register_rule(aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)
def softmax(ctx: Context, node: fx.Node) -> Axes:
    """Freezes its axis; the others are what an attention head is found by."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    axis = int(node.args[1]) % len(axes)  # type: ignore[arg-type]
    ctx.freeze(axes[axis], "softmax over this axis", node)
    for other, layout in enumerate(axes):
        if other != axis:
            ctx.tag(layout, "softmax")
    return axes


@register_rule(aten.cumsum, aten.cumprod, aten.flip, aten.roll)
def ordered(ctx: Context, node: fx.Node) -> Axes:
    """Order along the axis matters: frozen, and passed on."""
    source: Any = node.args[0]
    given: Any = node.args[2] if node.target is aten.roll.default and len(node.args) > 2 else None
    axes = ctx.of(source)
    worked = _axes_of(node, len(axes)) if given is None else [a % len(axes) for a in given]
    for axis in worked:
        ctx.freeze(axes[axis], f"{node.target} along this axis", node)
    return axes


@register_rule(aten.sort, aten.topk, aten.diff)
def reordered(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """The axis is frozen and comes out with units of its own."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    place = 2 if node.target in (aten.topk.default, aten.diff.default) else 1
    given = node.args[place] if len(node.args) > place else node.kwargs.get("dim", -1)
    axis = int(given) % len(axes)  # type: ignore[arg-type]
    ctx.freeze(axes[axis], f"{node.target} along this axis", node)
    values = node.meta["val"]
    several = isinstance(values, list | tuple)
    first = values[0] if several else values
    size, free = ctx.shape(first)[axis]
    fresh = dims.Dim(size, free, ctx.why(f"{node.target} along this axis", node))
    out = (*axes[:axis], fresh, *axes[axis + 1 :])
    return [out] * len(values) if several else out


@register_rule(aten.triu, aten.tril)
def triangle(ctx: Context, node: fx.Node) -> Axes:
    """Positions matter on the last two axes."""
    source: Any = node.args[0]
    for layout in ctx.of(source)[-2:]:
        ctx.freeze(layout, "a triangular mask over this axis", node)
    return ctx.of(source)
