"""Element by element: broadcast-aligned axes are the same axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Axes
from fxprune.ops.context import Context
from fxprune.ops.op import register_op

aten = torch.ops.aten


def _named(names: str) -> list[Any]:
    return [getattr(aten, name) for name in names.split()]


@register_op(
    torch.Tag.pointwise,
    aten.to,
    aten._to_copy,
    aten.contiguous,
    aten.clone,
    aten.alias,
    aten.detach,
    aten.lift_fresh_copy,
    aten.dropout,
    aten.alpha_dropout,
    aten.feature_dropout,
    aten.feature_alpha_dropout,
    aten.randint_like,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.empty_like,
    aten.rand_like,
    aten.randn_like,
    aten.fill,
    aten.float_power,
    aten.copy,
    # Element by element without torch's tag.
    *_named("complex polar real imag conj resolve_conj resolve_neg hardswish log_sigmoid"),
    *_named("floor_divide isclose bernoulli rrelu _conj __and__ __or__ __xor__"),
    aten.where.Scalar,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    # Other names of ops that have the tag.
    *_named("absolute negative subtract multiply divide fix"),
    *_named("greater greater_equal less less_equal not_equal"),
    *_named("arccos arccosh arcsin arcsinh arctan arctan2 arctanh"),
    *_named("special_expit special_erf special_erfc special_exp2 special_expm1 special_log1p"),
    # In place.
    *_named("fill_ zero_ copy_ detach_ masked_fill_ abs_ gelu_ mish_ relu6_ hardswish_ threshold_"),
    *_named("dropout_ alpha_dropout_ feature_dropout_ feature_alpha_dropout_ rrelu_"),
    *_named("normal_ uniform_ bernoulli_ exponential_ random_ geometric_ log_normal_ cauchy_"),
    *_named("subtract_ multiply_ divide_ true_divide_ floor_divide_ eq_ ne_ lt_ le_ gt_ ge_"),
)
def pointwise(ctx: Context, node: fx.Node) -> Axes:
    """Every operand's axes unify with the output's, sizes of 1 excepted."""
    operands = [n for n in node.all_input_nodes if n in ctx.axes]
    return ctx.broadcast(node, operands, len(ctx.shape(node)))


@register_op(aten.type_as)
def type_as(ctx: Context, node: fx.Node) -> Axes:
    """Of the second value only the type is read."""
    source: Any = node.args[0]
    return ctx.of(source)


@register_op(aten.bucketize.Tensor, aten.searchsorted.Tensor, aten.isin.Tensor_Tensor)
def sought(ctx: Context, node: fx.Node) -> Axes:
    """Each element is looked for in a vector that is the same for all."""
    first, second = node.args[:2]
    x, vector = (second, first) if node.target is aten.searchsorted.Tensor else (first, second)
    if len(ctx.of(vector)) != 1:
        return ctx.opaque(node, "looked for in rows")
    ctx.freeze(ctx.of(vector)[0], "looked through for each element", node)
    return ctx.of(x)


@register_op(aten.prelu)
def prelu(ctx: Context, node: fx.Node) -> Axes:
    """The slope is one number, or one for each channel (axis 1)."""
    x, slope = node.args[:2]
    if ctx.of(slope)[0].size > 1:
        ctx.unify(ctx.of(x)[1], ctx.of(slope)[0], node)
    return ctx.of(x)
