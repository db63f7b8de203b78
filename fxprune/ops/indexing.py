"""Lookup by data: the looked-up axis is frozen, the others pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten
# What leaves numbers what they are.
_MOVES = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("view", "default"), ("reshape", "default"), ("_unsafe_view", "default"),
        ("unsqueeze", "default"), ("squeeze", "dim"), ("expand", "default"),
        ("transpose", "int"), ("permute", "default"), ("slice", "Tensor"),
        ("to", "dtype"), ("to", "device"), ("_to_copy", "default"),
        ("clone", "default"), ("contiguous", "default"), ("alias", "default"),
    )
}  # fmt: skip


@register_op(aten.embedding)
def embedding(ctx: Context, node: fx.Node) -> Axes:
    """Rows (the vocabulary, if numbers of an input look them up) are frozen; the features pass."""
    weight, indices = node.args[:2]
    rows, features = ctx.of(weight)
    if _given(indices):
        ctx.tag(rows, "token")
    ctx.look_up(weight, 0, indices, "embedding rows are looked up by index", node)  # type: ignore[arg-type]
    return (*ctx.of(indices), features)


def _given(indices: Any) -> bool:
    """Whether the numbers are those of an input, moved and cast at most."""
    while isinstance(indices, fx.Node) and indices.target in _MOVES:
        indices = indices.args[0]
    return isinstance(indices, fx.Node) and indices.op == "placeholder"


@patches(aten.embedding)
def padding_index(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The row that no gradient reaches has another number, or is gone."""
    weight: Any = old.args[0]
    rows, _ = resize.axes(weight)
    given: Any = argument(old, "padding_idx")
    if given is not None and given >= 0 and resize.changed(rows):
        places = (resize.index(rows) == given).nonzero()
        new.update_arg(2, int(places[0]) if len(places) else -1)


@register_op(aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only)
def embedding_bag(ctx: Context, node: fx.Node) -> list[Axes]:
    """As embedding, rows being added, averaged or compared by bag; the rest is for gradients."""
    weight: Any = node.args[0]
    rows, features = ctx.of(weight)
    ctx.freeze(rows, "embedding rows are looked up by index", node)
    for operand in node.all_input_nodes:
        for layout in ctx.of(operand) if operand is not weight else ():
            ctx.freeze(layout, "the rows of a bag", node)
    (bags, free), _ = ctx.shape(node.meta["val"][0])
    return [(Dim(bags, free, ctx.why("the rows of a bag", node)), features)]


@register_op(aten.one_hot)
def one_hot(ctx: Context, node: fx.Node) -> Axes:
    """A new last axis with a place for each class, those that nothing points to behind the rest."""
    source: Any = node.args[0]
    pointer = ctx.pointed(source)
    classes, _ = ctx.shape(node)[-1]
    reason = ctx.why("a place for each class", node)
    if pointer is not None and pointer.layout.size <= classes:
        ctx.counts.add(node)
        ctx.align(pointer.source, pointer.layout, node, pointer.layout)
        more = Dim(classes - pointer.layout.size, reason=reason)
        return (*ctx.of(source), dims.Sum((pointer.layout, more)))
    return (*ctx.of(source), Dim(classes, reason=reason))


@register_op(aten.index.Tensor)
def index(ctx: Context, node: fx.Node) -> Axes:
    """``x[:, i, j]``: indexed axes are frozen and replaced by the indices' own axes."""
    source, indices = node.args[:2]
    axes = ctx.of(source)
    given: Any = list(indices) + [None] * (len(axes) - len(indices))  # type: ignore[arg-type]
    places = [a for a, i in enumerate(given) if i is not None]
    tensors = [given[place] for place in places]
    for place, tensor in zip(places, tensors, strict=True):
        ctx.look_up(source, place, tensor, "looked up by index", node)  # type: ignore[arg-type]
    if any(t.meta["val"].dtype == torch.bool for t in tensors):
        for tensor in tensors:
            for layout in ctx.of(tensor):
                ctx.freeze(layout, "selected by a mask", node)
        for layout in axes:
            ctx.freeze(layout, "selected by a mask", node)
        return ctx.fresh(node, ctx.why("selected by a mask", node))
    rank = max(len(ctx.of(t)) for t in tensors)
    looked_up = ctx.broadcast(node, tensors, rank)
    together = places == list(range(places[0], places[-1] + 1))
    start = places[0] if together else 0
    rest = [x for a, x in enumerate(axes) if a not in places]
    return (*rest[:start], *looked_up, *rest[start:])


@register_op(aten.index_select)
def index_select(ctx: Context, node: fx.Node) -> Axes:
    """As indexing along one axis."""
    source, axis, indices = node.args
    axes = ctx.of(source)
    place = int(axis) % len(axes)  # type: ignore[arg-type]
    ctx.look_up(source, place, indices, "looked up by index", node)  # type: ignore[arg-type]
    return (*axes[:place], ctx.of(indices)[0], *axes[place + 1 :])


@register_op(aten.gather)
def gather(ctx: Context, node: fx.Node) -> Axes:
    """Lookup along one axis; the others are the same axis where sizes agree."""
    source, axis, indices = node.args[:3]
    axes, out = ctx.of(source), ctx.of(indices)
    place = int(axis) % len(axes)  # type: ignore[arg-type]
    for a, (mine, theirs) in enumerate(zip(axes, out, strict=True)):
        if a == place:
            ctx.look_up(source, a, indices, "looked up by index", node)  # type: ignore[arg-type]
        elif mine.size == theirs.size:
            ctx.unify(mine, theirs, node)
        else:
            ctx.freeze(mine, "looked up by index", node)
            ctx.freeze(theirs, "looked up by index", node)
    return out


@register_op(
    aten.pad, aten.constant_pad_nd, aten.reflection_pad1d, aten.reflection_pad2d,
    aten.reflection_pad3d, aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
)  # fmt: skip
def pad(ctx: Context, node: fx.Node) -> Axes:
    """An axis padded with a constant is a sum; other padding, or cropping, freezes it."""
    source: Any = node.args[0]
    given: Any = argument(node, "pad") or argument(node, "padding")
    constant = node.target is aten.constant_pad_nd.default or argument(node, "mode") == "constant"
    axes, shape = list(ctx.of(source)), ctx.shape(node)
    for back, pair in enumerate(zip(given[::2], given[1::2], strict=True), start=1):
        size, free = shape[-back]
        if pair == (0, 0):
            continue
        if constant and not free and all(isinstance(n, int) and n >= 0 for n in pair):
            left, right = dims.Dim(pair[0]), dims.Dim(pair[1])
            ctx.notes[node, f"pad{2 * back - 2}"] = left
            ctx.notes[node, f"pad{2 * back - 1}"] = right
            axes[-back] = dims.Sum((left, axes[-back], right))
        else:
            ctx.freeze(axes[-back], "padded", node)
            axes[-back] = dims.Dim(size, free, ctx.why("padded", node))
    return tuple(axes)


@patches(aten.one_hot)
def classes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """The number of classes."""
    layout = resize.axes(old)[-1]
    if resize.changed(layout):
        new.update_arg(1, resize.size(layout))


@patches(aten.pad, aten.constant_pad_nd)
def pad_amounts(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Padding stands for units, of which some may be gone."""
    given: Any = new.args[1]
    notes = [resize.inferred.notes.get((old, f"pad{place}")) for place in range(len(given))]
    pairs = zip(notes, given, strict=True)
    new.update_arg(1, [amount if x is None else resize.size(x) for x, amount in pairs])
