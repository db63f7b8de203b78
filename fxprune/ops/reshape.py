"""Views: axes are flattened to factors and regrouped, reordered, added or repeated."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout, Product
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.patching import list_of_sizes, patches, resized
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument

aten = torch.ops.aten


def regroup(ctx: Context, node: fx.Node, axes: Axes, sizes: tuple[tuple[int, bool], ...]) -> Axes:
    """Axes of the same elements in row-major order under other sizes.

    Both shapes are cut into the shortest runs of equal product; inside a run the source's factors
    unify with fresh output dims, which splits dims on demand.
    """
    out: list[Layout] = []
    i = j = 0
    while i < len(axes) or j < len(sizes):
        here: list[Layout] = list(axes[i : i + 1])
        there = list(sizes[j : j + 1])
        i, j = i + len(here), j + len(there)
        while (left := prod(x.size for x in here)) != (right := prod(s for s, _ in there)):
            if left < right and i < len(axes):
                here.append(axes[i])
                i += 1
            elif j < len(sizes):
                there.append(sizes[j])
                j += 1
            else:
                break
        source: Layout = here[0] if len(here) == 1 else Product(tuple(here))
        if len(there) == 1:
            out.append(source)
        elif there:
            split = tuple(Dim(size, free) for size, free in there)
            ctx.unify(source, Product(split), node)
            out.extend(split)
    return tuple(out)


@register_op(
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten._reshape_alias,
    aten.ravel,
)  # fmt: skip
def view(ctx: Context, node: fx.Node) -> Axes:
    """Row-major regrouping."""
    if node.target is aten.view.dtype:
        return ctx.opaque(node, "a view as another dtype")
    source: Any = node.args[0]
    return regroup(ctx, node, ctx.of(source), ctx.shape(node))


@register_op(aten.view_as, aten.reshape_as)
def view_as(ctx: Context, node: fx.Node) -> Axes:
    """Row-major regrouping to the axes of another value."""
    source: Any = node.args[0]
    other: Any = node.args[1]
    out = regroup(ctx, node, ctx.of(source), ctx.shape(node))
    for mine, theirs in zip(out, ctx.of(other), strict=True):
        ctx.unify(mine, theirs, node)
    return out


@register_op(aten.view_as_complex)
def view_as_complex(ctx: Context, node: fx.Node) -> Axes:
    """Pairs on the last axis become one number."""
    source: Any = node.args[0]
    ctx.freeze(ctx.of(source)[-1], "the two parts of a complex number", node)
    return ctx.of(source)[:-1]


@patches(aten.view_as_complex)
def pairs_apart(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Pairs that were a part of a tensor of even width may not be one of an odd width."""
    source: Any = new.args[0]
    with new.graph.inserting_before(new):
        apart = new.graph.call_function(aten.contiguous.default, (source,))
    apart.meta = dict(source.meta)
    new.update_arg(0, apart)


@register_op(aten.view_as_real)
def view_as_real(ctx: Context, node: fx.Node) -> Axes:
    """A number becomes a pair on a new last axis."""
    source: Any = node.args[0]
    return (*ctx.of(source), Dim(2, reason=ctx.why("the two parts of a complex number", node)))


@register_op(
    aten.transpose, aten.swapaxes, aten.swapdims, aten.t, aten.numpy_T, aten.mT, aten.mH,
    aten.adjoint, aten.permute, aten.movedim, aten.moveaxis, aten.transpose_, aten.swapaxes_,
    aten.swapdims_, aten.t_,
)  # fmt: skip
def reorder(ctx: Context, node: fx.Node) -> Axes:
    """Axes change places."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    rank = len(axes)
    order = list(range(rank))
    name = str(node.target).split(".")[1].removesuffix("_")
    if name in ("transpose", "swapaxes", "swapdims", "mT", "mH", "adjoint"):
        given: Any = node.args[1:] or (-1, -2)
        a, b = given[0] % rank, given[1] % rank
        order[a], order[b] = order[b], order[a]
    elif name in ("t", "numpy_T"):
        order.reverse()
    elif name == "permute":
        order = [int(a) % rank for a in node.args[1]]  # type: ignore[union-attr, arg-type]
    else:
        order = _moved(node, rank)
    return tuple(axes[a] for a in order)


def _moved(node: fx.Node, rank: int) -> list[int]:
    numbered = torch.empty(list(range(2, rank + 2)), device="meta").movedim(*node.args[1:])  # type: ignore[arg-type]
    return [size - 2 for size in numbered.shape]


@register_op(aten.unsqueeze, aten.unsqueeze_)
def unsqueeze(ctx: Context, node: fx.Node) -> Axes:
    """A new axis of size 1."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    place = int(node.args[1]) % (len(axes) + 1)  # type: ignore[arg-type]
    return (*axes[:place], dims.ONE, *axes[place:])


@register_op(aten.squeeze, aten.squeeze_)
def squeeze(ctx: Context, node: fx.Node) -> Axes:
    """Axes of size 1 go (all, or those named)."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    named: Any = node.args[1] if len(node.args) > 1 else range(len(axes))
    gone = {a % len(axes) for a in ([named] if isinstance(named, int) else named)}
    return tuple(x for a, x in enumerate(axes) if not (a in gone and x.size == 1))


@register_op(aten.broadcast_tensors)
def broadcast(ctx: Context, node: fx.Node) -> list[Axes]:
    """Every operand is expanded to the shape of all."""
    operands: Any = node.args[0]
    values = node.meta["val"]
    return [ctx.broadcast(node, operands, len(values[0].shape))] * len(values)


@register_op(aten.expand, aten.expand_as, aten.broadcast_to)
def expand(ctx: Context, node: fx.Node) -> Axes:
    """A repeated axis is a fresh dim."""
    source: Any = node.args[0]
    axes, shape = ctx.of(source), ctx.shape(node)
    lead = len(shape) - len(axes)
    out: list[Layout] = []
    for place, (size, free) in enumerate(shape):
        mine = axes[place - lead] if place >= lead else dims.ONE
        if mine.size == size:
            out.append(mine)
        else:
            out.append(Dim(size, free))
            ctx.copied(out[-1], source, node)
    if node.target is aten.expand_as.default:
        other: Any = node.args[1]
        for layout, theirs in zip(out, ctx.of(other), strict=True):
            ctx.unify(layout, theirs, node)
    return tuple(out)


@register_op(aten.repeat, aten.tile)
def repeat(ctx: Context, node: fx.Node) -> Axes:
    """Each axis becomes (copies x axis)."""
    source: Any = node.args[0]
    axes, shape = ctx.of(source), ctx.shape(node)
    lead = len(shape) - len(axes)
    given: Any = node.args[1]
    given = [*[1] * (len(shape) - len(given)), *given]  # tile may name the last axes only
    out: list[Layout] = []
    for place, (size, _) in enumerate(shape):
        mine = axes[place - lead] if place >= lead else dims.ONE
        copies = Dim(size // mine.size, not isinstance(given[place], int))
        ctx.copied(copies, source, node)
        out.append(Product((copies, mine)))
    return tuple(out)


@register_op(aten.repeat_interleave.self_int)
def repeat_interleave(ctx: Context, node: fx.Node) -> Axes:
    """One axis becomes (axis x copies); all axes are flattened first if none is named."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    given = argument(node, "dim")
    if given is None:
        axes, given = (Product(axes),), 0
    place = given % len(axes)
    size, _ = ctx.shape(node)[place]
    copies = Dim(size // axes[place].size, not isinstance(node.args[1], int))
    ctx.copied(copies, source, node)
    return (*axes[:place], Product((axes[place], copies)), *axes[place + 1 :])


patches(
    aten.view.default, aten.reshape, aten._unsafe_view, aten._reshape_alias, aten.expand,
    aten.broadcast_to,
)(list_of_sizes(1))  # fmt: skip


@patches(aten.unflatten)
def unflatten_sizes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Sizes of the axes that one axis is split into."""
    layouts = resize.axes(old)
    given: Any = new.args[2]
    before: Any = old.args[2]
    start = int(new.args[1]) % (len(layouts) - len(given) + 1)  # type: ignore[arg-type]
    triples = zip(layouts[start : start + len(given)], given, before, strict=True)
    new.update_arg(2, [resized(resize, new, *each) for each in triples])


@patches(aten.repeat, aten.tile)
def repeat_copies(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Copies of each axis: what the output has over the input."""
    source: Any = old.args[0]
    given: Any = new.args[1]
    layouts, inner = resize.axes(old), resize.axes(source)
    lead = len(layouts) - len(inner)
    given = [*[1] * (len(layouts) - len(given)), *given]  # tile may name the last axes only
    copies = []
    for place, (layout, count) in enumerate(zip(layouts, given, strict=True)):
        mine = resize.size(inner[place - lead]) if place >= lead else 1
        copies.append(resize.size(layout) // mine if isinstance(count, int) else count)
    new.update_arg(1, copies)


@patches(aten.repeat_interleave.self_int)
def repeat_interleave_copies(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Copies of each unit of one axis."""
    source: Any = old.args[0]
    given = argument(new, "dim")
    inner = resize.axes(source)
    if isinstance(new.args[1], int):
        place = 0 if given is None else given % len(inner)
        mine = 1
        for layout in inner if given is None else (inner[place],):
            mine *= resize.size(layout)
        new.update_arg(1, resize.size(resize.axes(old)[place]) // mine)
    if isinstance(new.kwargs.get("output_size"), int):
        new.update_kwarg("output_size", None)


@patches(aten.squeeze, aten.squeeze_)
def squeeze_axes(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """Name the axes that go: one pruned down to a single unit must stay."""
    source: Any = old.args[0]
    axes = resize.axes(source)
    named: Any = old.args[1] if len(old.args) > 1 else range(len(axes))
    gone = {a % len(axes) for a in ([named] if isinstance(named, int) else named)}
    packet = old.target.overloadpacket  # type: ignore[union-attr]
    new.target = packet.dims
    new.args = (new.args[0], sorted(a for a in gone if axes[a].size == 1))
