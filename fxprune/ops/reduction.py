"""Reductions: the axis is gone (or 1). Sums and means allow pruning, extremes and order do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Layout
from fxprune.ops.context import Context
from fxprune.ops.op import packet, register_op
from fxprune.trace.arguments import argument, axes_of, axis_of
from fxprune.trace.storage import sources

aten = torch.ops.aten
_EXTREME = "depends on every unit of this axis"
SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}


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


def _summed(ctx: Context, node: fx.Node) -> Axes:
    source: Any = node.args[0]
    axes = axes_of(node, len(ctx.of(source)))
    factors = source.all_input_nodes if packet(source) is aten.mul else [source]
    for axis in axes:
        layout = ctx.of(source)[axis]
        if not (_adds(node) and any(_lost(ctx, each, layout) for each in factors)):
            ctx.tag(layout, "normalised")
    return _reduced(ctx, node, axes)


def _adds(node: fx.Node) -> bool:
    """Whether zeros among the units make no difference to a reduction."""
    if packet(node) is aten.linalg_vector_norm:
        return bool(argument(node, "ord") > 0)
    return packet(node) is aten.sum


def _lost(ctx: Context, value: fx.Node, layout: Layout) -> bool:
    """Whether a value is zero at each unit that is gone, for it is one of zero weights."""
    if value not in ctx.derived:
        return False
    if value.op == "get_attr":
        own = {dim for each in ctx.of(value) for dim in dims.atoms(each)}
        return value in ctx.learned and own.issuperset(dims.atoms(layout))
    if packet(value) is aten.mul:
        return any(_lost(ctx, each, layout) for each in value.all_input_nodes)
    through = packet(value) in (aten.clone, aten.sum) or any(sources(value))
    return through and _lost(ctx, value.all_input_nodes[0], layout)


@register_op(
    aten.mean, aten.sum, aten.var, aten.std, aten.norm, aten.linalg_vector_norm, aten.nansum,
    aten.nanmean,
)  # fmt: skip
def total(ctx: Context, node: fx.Node) -> Axes:
    """Units are summed: they can go, but the result is not that of zeroed units."""
    return _summed(ctx, node)


@register_op(aten.var_mean, aten.std_mean)
def total_twice(ctx: Context, node: fx.Node) -> list[Axes]:
    """Two sums over the same axes."""
    return [_summed(ctx, node)] * 2


@register_op(aten.linalg_norm)
def norm(ctx: Context, node: fx.Node) -> Axes:
    """A sum if it is the norm of vectors; that of a matrix depends on all of it."""
    order, given = argument(node, "ord"), argument(node, "dim")
    if order is not None and (given is None or len(given) != 1):
        return ctx.opaque(node, "the norm of a matrix")
    return _summed(ctx, node)


@register_op(
    aten.min.dim, aten.amin, aten.argmin, aten.prod, aten.any, aten.all, aten.max.default,
    aten.min.default, aten.aminmax, aten.median, aten.nanmedian, aten.mode, aten.kthvalue,
    aten.quantile.scalar, aten.nanquantile.scalar,
)  # fmt: skip
def extreme(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """The result depends on which units are there: the axis is frozen."""
    source: Any = node.args[0]
    for axis in axes_of(node, len(ctx.of(source))):
        ctx.freeze(ctx.of(source)[axis], _EXTREME, node)
    return _of_each(ctx, node)


@register_op(aten.amax, aten.max.dim, aten.argmax, aten.logsumexp)
def largest(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """As other extremes, unless units are chosen from the axis, be it here, by their position."""
    source: Any = node.args[0]
    axes = axes_of(node, len(ctx.of(source)))
    places: dict[Any, int] = {aten.max: 1, aten.argmax: 0}
    place = places.get(packet(node))
    for axis in axes:
        layout = ctx.of(source)[axis]
        ctx.unless_chosen.append((layout, ctx.why(_EXTREME, node)))
        ctx.tag(layout, "normalised")
        if place is not None and len(axes) == 1:
            ctx.choose(node, layout, 1, place)
        elif place is not None:
            ctx.freeze(layout, _EXTREME, node)
    return _of_each(ctx, node)


def _of_each(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """What is left of the axes, for each output."""
    source: Any = node.args[0]
    out = _reduced(ctx, node, axes_of(node, len(ctx.of(source))))
    value = node.meta["val"]
    return [out] * len(value) if isinstance(value, list | tuple) else out


@register_op(*SOFTMAX, aten.log_softmax, aten._log_softmax)
def softmax(ctx: Context, node: fx.Node) -> Axes:
    """Freezes its axis, unless units are chosen from it; the others are what heads are found by."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    axis = axis_of(node, len(axes))
    ctx.unless_chosen.append((axes[axis], ctx.why("softmax over this axis", node)))
    ctx.tag(axes[axis], "normalised")
    for other, layout in enumerate(axes):
        if other != axis:
            ctx.tag(layout, "softmax")
    return axes


@register_op(
    aten.cumsum, aten.cumprod, aten.cumsum_, aten.cumprod_, aten.cummax, aten.cummin, aten.flip,
    aten.roll,
)  # fmt: skip
def ordered(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """Order along the axis matters: frozen, and passed on."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    if node.target is aten.cumsum.default and source in ctx.counts:
        return axes  # what goes was counted zero times
    for axis in axes_of(node, len(axes)):
        ctx.freeze(axes[axis], "the order of this axis matters", node)
    values = node.meta["val"]
    return [axes] * len(values) if isinstance(values, list | tuple) else axes


@register_op(
    aten._fft_r2c, aten._fft_c2r, aten._fft_c2c,
    *(getattr(aten, f"fft_{inverse}{real}fft{axes}")
      for inverse in ("", "i") for real in ("", "r", "h") for axes in ("", "2", "n")
      if real != "h" or not axes),
)  # fmt: skip
def fourier(ctx: Context, node: fx.Node) -> Axes:
    """The transformed axes are frozen and come out with units of their own."""
    source: Any = node.args[0]
    axes, what = list(ctx.of(source)), "a Fourier transform along this axis"
    fresh = ctx.fresh(node, ctx.why(what, node))
    for axis in axes_of(node, len(axes)):
        ctx.freeze(axes[axis], what, node)
        axes[axis] = fresh[axis]
    return tuple(axes)


@register_op(aten.sort, aten.argsort, aten.diff)
def reordered(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """The axis is frozen and comes out with units of its own."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    axis = axis_of(node, len(axes))
    ctx.freeze(axes[axis], "the order of this axis matters", node)
    values = node.meta["val"]
    several = isinstance(values, list | tuple)
    first = values[0] if several else values
    size, free = ctx.shape(first)[axis]
    fresh = dims.Dim(size, free, ctx.why("the order of this axis matters", node))
    out = (*axes[:axis], fresh, *axes[axis + 1 :])
    if (pointer := ctx.pointed(source)) is not None and several:
        ctx.points[node, 0] = pointer
    return [out] * len(values) if several else out


@register_op(aten.triu, aten.tril, aten.triu_, aten.tril_)
def triangle(ctx: Context, node: fx.Node) -> Axes:
    """Positions matter on the last two axes."""
    source: Any = node.args[0]
    for layout in ctx.of(source)[-2:]:
        ctx.freeze(layout, "a triangular mask over this axis", node)
    return ctx.of(source)


register_op(*SOFTMAX, aten.log_softmax, aten._log_softmax, reduces=True)
register_op(
    aten.mean, aten.nanmean, aten.sum, aten.nansum, aten.var, aten.std, aten.var_mean,
    aten.std_mean, aten.norm, aten.linalg_vector_norm, aten.linalg_norm, aten.amax, aten.max.dim,
    aten.argmax, aten.logsumexp,
    reduces=True,
)  # fmt: skip
