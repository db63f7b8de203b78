"""Recurrent layers and cells: a hidden unit is a row in every gate, in every layer alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes.dims import Axes, Dim, Layout, Product, Sum
from fxprune.axes.polynomial import Polynomial, product, total
from fxprune.errors import RewriteError
from fxprune.ops.context import Context
from fxprune.ops.op import AxisSizes, register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten
_ORDER = "the order of this axis matters"


@register_op(aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
def recurrent(ctx: Context, node: fx.Node) -> list[Axes]:
    """Layers over a sequence, in one or two directions, perhaps with a projection.

    Input (batch, length, in) or (length, batch, in); states (layers x directions, batch, hidden).
    Such a layer has one hidden size, so a unit goes from all of its cells at once. Every cell is
    given as the weights (gates x hidden, in) and (gates x hidden, out), two biases or none, and
    the projection (out, hidden) or none; out is hidden without one.
    """
    given: Any = node.args
    x, states, weights, biased, layers = given[:5]
    directions = 2 if argument(node, "bidirectional") else 1
    states = states if isinstance(states, list | tuple) else [states]
    size = len(weights) // (layers * directions)
    projects = size > (4 if biased else 2)
    out, hidden = _sizes(ctx, weights[1], weights[size - 1] if projects else None)
    inner: Layout = ctx.of(x)[-1]
    whole: Layout = Sum((out,) * directions) if directions > 1 else out
    for start in range(0, len(weights), size):
        if start < size * directions:
            ctx.align(x, inner, weights[start], ctx.of(weights[start])[1])
            _cell(ctx, node, weights[start : start + size], inner, out, hidden)
        else:
            _cell(ctx, node, weights[start : start + size], whole, out, hidden)
    ctx.flow(x, inner, node, "all", hidden)
    time, batch = (1, 0) if argument(node, "batch_first") else (0, 1)
    ctx.freeze(ctx.of(x)[time], _ORDER, node)
    rows = ctx.of(x)[batch]
    ctx.flow(x, rows, node)
    results: list[Axes] = [(*ctx.of(x)[:-1], whole)]
    for state, units in zip(states, (out, hidden), strict=False):
        stacked, *_ = ctx.of(state)
        ctx.freeze(stacked, "one state of each layer and direction", node)
        _state(ctx, node, state, (rows, units))
        results.append((stacked, rows, units))
    return results


@register_op(aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell)
def cell(ctx: Context, node: fx.Node) -> Axes | list[Axes]:
    """One step: input (batch, in), states (batch, hidden)."""
    given: Any = node.args
    x, states, *weights = given
    states = states if isinstance(states, list | tuple) else [states]
    out, hidden = _sizes(ctx, weights[1], None)
    rows, inner = ctx.of(x)
    ctx.align(x, inner, weights[0], ctx.of(weights[0])[1])
    _cell(ctx, node, [w for w in weights if w is not None], inner, out, hidden)
    ctx.flow(x, inner, node, "all", hidden)
    ctx.flow(x, rows, node)
    for state in states:
        _state(ctx, node, state, (rows, hidden))
    several = isinstance(node.meta["val"], list | tuple)
    return [(rows, hidden)] * len(states) if several else (rows, hidden)


def _sizes(ctx: Context, recurrent: fx.Node, projection: fx.Node | None) -> tuple[Layout, Layout]:
    """What a step gives, and its hidden units."""
    out = ctx.of(recurrent)[1]
    return out, out if projection is None else ctx.of(projection)[1]


def _cell(
    ctx: Context, node: fx.Node, tensors: list[fx.Node], inner: Layout, out: Layout, hidden: Layout
) -> None:
    for tensor in tensors:
        ctx.flow(tensor, hidden, node)
    gates = ctx.of(tensors[0])[0].size // hidden.size
    rows: Layout = Product((Dim(gates, reason=ctx.why("the gates of a cell", node)), hidden))
    for tensor, columns in zip(tensors[:2], (inner, out), strict=True):
        ctx.unify(ctx.of(tensor)[0], rows, node)
        ctx.unify(ctx.of(tensor)[1], columns, node)
        ctx.flow(tensor, columns, node)
    for tensor in tensors[2:]:
        axes = ctx.of(tensor)
        if len(axes) == 1:
            ctx.unify(axes[0], rows, node)
        else:  # the projection
            ctx.unify(axes[0], out, node)
            ctx.unify(axes[1], hidden, node)
            ctx.flow(tensor, out, node)


def _state(ctx: Context, node: fx.Node, state: fx.Node, axes: Axes) -> None:
    for mine, theirs in zip(axes, ctx.of(state)[-2:], strict=True):
        ctx.unify(mine, theirs, node)
        ctx.flow(state, theirs, node, to=mine)


@patches(aten.lstm.input)
def lstm_projection(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A projection is told by its size, which must be another than the hidden one."""
    given: Any = old.args
    hidden, cell = (resize.axes(state)[-1] for state in given[1])
    if hidden.size != cell.size and resize.size(hidden) == resize.size(cell):
        raise RewriteError(
            f"{new.name} would project {resize.size(cell)} hidden units to as many outputs, and "
            "torch takes such an LSTM for one without a projection: keep more of its hidden units"
        )


def _recurrent_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    """Every step multiplies with every matrix once; directions and layers have their own."""
    given: Any = node.args
    weights = given[2] if isinstance(given[2], list | tuple) else given[2:]
    matrices = (w for w in weights if isinstance(w, fx.Node) and w.meta["val"].dim() == 2)
    return product(sizes.axes(given[0])[:-1]) * total(map(sizes.elements, matrices))


register_op(
    aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu,
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell,
    macs=_recurrent_macs,
)  # fmt: skip
