"""Walk the graph once and infer what every axis is made of. Linear in the number of nodes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.axes.dims import Axes, Dim, atoms, resolve
from fxprune.groups import outputs
from fxprune.groups.decompose import decompose
from fxprune.ops import choosing, taken
from fxprune.ops.context import Context, Inferred
from fxprune.ops.op import find_op
from fxprune.trace.traced import Traced

# Outputs that mix these by an addition form a residual stream.
_ADDITIONS = {"aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor"}


def infer(traced: Traced) -> Inferred:
    """Run every op's rule over the graph.

    Args:
        traced: the traced model; only shapes are read, so ``meta`` models will do.

    Returns:
        The axes of every value. What could not be followed is frozen with a reason.
    """
    decompose(traced)
    ctx = Context(traced.sizes)
    tensors: dict[str, Axes] = {}
    origin: dict[fx.Node, fx.Node | None] = {}
    intermediate: frozenset[int] = frozenset()
    for node in traced.graph_module.graph.nodes:
        if node.op == "get_attr":
            value = traced.tensors.get(str(node.target))
            if value is not None:
                ctx.axes[node] = tensors[str(node.target)] = ctx.fresh(value)
                ctx.derived.add(node)
                if isinstance(value, nn.Parameter):
                    ctx.learned.add(node)
        elif node.op == "placeholder":
            if isinstance(node.meta.get("val"), torch.Tensor):
                ctx.axes[node] = ctx.fresh(node, f"graph input {node.target}")
        elif node.op == "output":
            intermediate = _output(ctx, traced, node)
        elif node.op == "call_function":
            _call(ctx, node)
            _mark_residual(ctx, node, origin)
        else:
            _unknown(ctx, node)
    _mark_tokens(ctx, traced.graph_module.graph.output_node())
    taken.settle(ctx)
    choosing.settle(ctx)
    return Inferred(
        ctx.axes, tensors, ctx.tags, ctx.links, ctx.notes, ctx.derived, intermediate,
        {at: pointer.layout for at, pointer in ctx.points.items()}, ctx.least,
        ctx.lists,
    )  # fmt: skip


def _call(ctx: Context, node: fx.Node) -> None:
    if node.target is operator.getitem:
        _pick(ctx, node)
        return
    values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    inputs = [n for n in node.all_input_nodes if n in ctx.axes]
    if not values:
        return
    if inputs and all(n in ctx.derived for n in inputs):
        ctx.derived.add(node)
    numbers = any(value.is_floating_point() or value.is_complex() for value in values)
    if numbers and not ctx.learned.isdisjoint(inputs):
        ctx.learned.add(node)
    op = find_op(node.target)
    if op.rule is None or any(isinstance(ctx.axes[n], list) for n in inputs):
        _unknown(ctx, node)
        return
    mark = len(ctx.links)
    axes = op.rule(ctx, node)
    if not _fits(ctx, node, axes):
        del ctx.links[mark:]
        _unknown(ctx, node, "axes of a shape its rule does not expect")
        return
    ctx.axes[node] = axes
    choosing.follow(ctx, node)
    # A weight of each unit, as of a norm, makes no unit of a copy.
    sources = {n for n in inputs if n in ctx.learned and (op.contracts or n not in ctx.derived)}
    if sources and sources <= ctx.copies:
        ctx.copies.add(node)


def _pick(ctx: Context, node: fx.Node) -> None:
    """One output of an op with several."""
    source: Any = node.args[0]
    place: Any = node.args[1]
    for marked in (ctx.derived, ctx.learned, ctx.copies):  # a piece of a fused weight is a weight
        if source in marked:
            marked.add(node)
    axes = ctx.axes.get(source)
    if isinstance(axes, list):
        ctx.axes[node] = axes[place]
        if (source, place) in ctx.points:
            ctx.points[node, 0] = ctx.points[source, place]


def _fits(ctx: Context, node: fx.Node, axes: Axes | list[Axes]) -> bool:
    value = node.meta["val"]
    pairs = zip(value, axes, strict=False) if isinstance(axes, list) else [(value, axes)]
    return all(
        tuple(layout.size for layout in mine) == ctx.sizes_of(theirs)
        for theirs, mine in pairs
        if isinstance(theirs, torch.Tensor)
    )


def _unknown(ctx: Context, node: fx.Node, what: str | None = None) -> None:
    """Never guess: freeze everything the op touches."""
    text = what or f"unknown op {str(node.target).removesuffix('.default')}"
    for source in node.all_input_nodes:
        for layout in pytree.tree_leaves(ctx.axes.get(source, ())):
            ctx.freeze(layout, text, node)
        if (pointer := ctx.pointed(source)) is not None:
            ctx.freeze(pointer.layout, text, node)
    value = node.meta.get("val")
    reason = ctx.why(text, node)
    if isinstance(value, torch.Tensor):
        ctx.axes[node] = ctx.fresh(value, reason)
    elif isinstance(value, list | tuple):
        ctx.axes[node] = [
            ctx.fresh(v, reason) if isinstance(v, torch.Tensor) else () for v in value
        ]


def _output(ctx: Context, traced: Traced, node: fx.Node) -> frozenset[int]:
    """Freeze what the graph returns, save for intermediate values."""
    leaves = dict(enumerate(pytree.tree_leaves(node.args[0])))
    known = {place: leaf for place, leaf in leaves.items() if leaf in ctx.axes}
    free = outputs.intermediate(traced.graph_module.graph) & known.keys()
    for place, leaf in known.items():
        if place not in free:
            pointer = ctx.pointed(leaf)
            for layout in (*ctx.of(leaf), *([pointer.layout] if pointer else [])):
                ctx.freeze(layout, "graph output", leaf)
    return free


def _mark_tokens(ctx: Context, output: fx.Node) -> None:
    """Tag the axis of an output that has a value for each token, where its weight is not tied.

    Of several tables that inputs look up (tokens, types of tokens) the longest is the vocabulary.
    """
    found = [atom.size for layout, tag in ctx.tags if tag == "token" for atom in atoms(layout)]
    for leaf in pytree.tree_leaves(output.args[0]):
        axes = ctx.axes.get(leaf) if isinstance(leaf, fx.Node) else None
        if isinstance(axes, tuple) and axes and leaf.meta["val"].is_floating_point():
            layout = resolve(axes[-1])
            if isinstance(layout, Dim) and found and layout.size == max(found):
                ctx.tag(layout, "token")


def _mark_residual(ctx: Context, node: fx.Node, origin: dict[fx.Node, fx.Node | None]) -> None:
    """Tag axes on which values of different origin are added.

    The origin of a value is the contraction or lookup it was computed from; a pointwise chain
    keeps it, so that an activation function which adds a value to itself is not a residual. What
    is made of sizes alone, such as zeros to compare with, has none.
    """
    sources = [n for n in node.all_input_nodes if n in ctx.axes and n not in ctx.derived]
    sources = [n for n in sources if origin.get(n, n) is not None]
    origins = {origin.get(n, n) for n in sources}
    packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    makes = packet in ("linear", "addmm", "mm", "bmm", "matmul", "embedding") or "conv" in packet
    origin[node] = node if makes or len(origins) > 1 else next(iter(origins), None)
    if str(node.target) in _ADDITIONS and len(origins) > 1:
        left, right = ctx.of(sources[0]), ctx.of(sources[1])
        for mine, theirs in zip(reversed(left), reversed(right), strict=False):
            if mine.size > 1 and theirs.size > 1:
                ctx.tag(mine, "residual")
