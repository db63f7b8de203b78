"""Choosing units by their scores, as a router chooses experts, and what follows the choice.

What is chosen is known by its position. As units go, positions are counted anew, so a value that
holds some is followed to where they are looked up; any other use of it freezes the units.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout, Product, find, resolve
from fxprune.axes.polynomial import Polynomial
from fxprune.ops.context import Context
from fxprune.ops.contraction import contract
from fxprune.ops.op import AxisSizes, packet, register_op, uncounted
from fxprune.ops.patching import patches
from fxprune.ops.resize import Resizer
from fxprune.trace.arguments import argument, axis_of

aten = torch.ops.aten
GROUPED = (aten._grouped_mm, "transformers::grouped_mm_fallback")

# Positions come out as they went in.
_KEEPS = {
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.transpose,
    aten.permute, aten.t, aten.squeeze, aten.unsqueeze, aten.expand, aten.clone, aten.contiguous,
    aten.detach, aten.alias, aten.to, aten._to_copy, aten.slice, aten.select, aten.repeat,
    aten.repeat_interleave, aten.index, aten.index_select, aten.gather, aten.type_as,
}  # fmt: skip
JOINS = {aten.cat, aten.concat, aten.concatenate, aten.stack, aten.hstack, aten.vstack}
# They look up or count what positions point to, or read no value at all.
_USES = {
    aten.index, aten.index_select, aten.gather, aten.embedding, aten.one_hot, aten.histc, aten.sort,
    aten.argsort, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_, aten.sym_size,
    aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like, aten.new_zeros, aten.new_ones,
    aten.new_empty, aten.new_full,
}  # fmt: skip


@register_op(aten.topk)
def topk(ctx: Context, node: fx.Node) -> list[Axes]:
    """The ``k`` largest: units that are gone cannot be among them, and so many have to stay."""
    source: Any = node.args[0]
    axes = ctx.of(source)
    axis = axis_of(node, len(axes))
    chosen, k = axes[axis], argument(node, "k")
    size, free = ctx.shape(node.meta["val"][0])[axis]
    if not isinstance(k, int):
        ctx.freeze(chosen, "the order of this axis matters", node)
        k = 1
    ctx.tag(chosen, "normalised")
    ctx.tag(chosen, "chosen")
    ctx.choose(node, chosen, k, place=1)
    fresh = Dim(size, free, ctx.why("the order of this axis matters", node))
    return [(*axes[:axis], fresh, *axes[axis + 1 :])] * 2


@register_op(aten.histc)
def histc(ctx: Context, node: fx.Node) -> Axes:
    """How often each unit is pointed to; of other numbers, bins that stay."""
    source: Any = node.args[0]
    pointer = ctx.pointed(source)
    bins = tuple(argument(node, name) for name in ("bins", "min", "max"))
    if pointer is not None:
        target = pointer.layout
        if bins == (target.size, 0, target.size - 1):
            ctx.counts.add(node)
            ctx.align(pointer.source, target, node, target)
            return (target,)
        ctx.freeze(target, "counted in bins", node)
    return ctx.fresh(node, ctx.why("counted in bins", node))


@patches(aten.histc)
def histc_bins(resize: Resizer, old: fx.Node, new: fx.Node) -> None:
    """A bin for each unit that stays."""
    layout = resize.axes(old)[0]
    if resize.changed(layout):
        size = resize.size(layout)
        new.args, new.kwargs = (new.args[0], size, 0, size - 1), {}


@register_op(*GROUPED)
def grouped(ctx: Context, node: fx.Node) -> Axes:
    """Rows sorted by expert, each times the matrix of its own: (T, in) and (E, in, out)."""
    given: Any = node.args
    x, weight = given[:2]
    offsets = argument(node, "offs")
    if not isinstance(offsets, fx.Node) or (len(ctx.of(x)), len(ctx.of(weight))) != (2, 3):
        return ctx.opaque(node, "groups that lie on another axis")
    rows, inner = ctx.of(x)
    experts, same, columns = ctx.of(weight)
    (ends,) = ctx.of(offsets)
    if offsets in ctx.counts:
        ctx.unify(experts, ends, node)
        ctx.align(offsets, ends, weight, experts)
        ctx.tag(experts, "expert")
    else:
        ctx.freeze(experts, "its rows are sorted by data", node)
        ctx.freeze(ends, "its rows are sorted by data", node)
    contract(ctx, node, x, inner, weight, same, (columns,))
    for layout in (inner, columns):
        ctx.tag(layout, "aligned")
    ctx.flow(x, rows, node)
    ctx.flow(weight, columns, node)
    return (rows, columns)


def _grouped_macs(sizes: AxisSizes, node: fx.Node) -> Polynomial:
    """Rows sorted by expert: each meets the matrix of its own."""
    given: Any = node.args
    if given[1].meta["val"].dim() != 3:
        raise uncounted(node, "its groups lie on the contracted axis")
    return sizes.elements(node) * sizes.axes(given[0])[-1]


register_op(*GROUPED, contracts=True, macs=_grouped_macs)
register_op(aten.topk, reduces=True)


def follow(ctx: Context, node: fx.Node) -> None:
    """Follow positions, counts and chosen weights through an op whose axes are known."""
    op = packet(node)
    source: Any = node.args[0] if node.args else None
    keeps = op in _KEEPS
    if op in JOINS:
        # Positions beside others on the same axis.
        several = [ctx.pointed(each) for each in source]
        keeps = len({each and tuple(dims.atoms(each.layout)) for each in several}) == 1
        source = source[0]
    pointer = ctx.pointed(source)
    if pointer is not None and keeps:
        ctx.points[node, 0] = pointer
    if source in ctx.counts and op in (aten.to, aten._to_copy, aten.cumsum):
        ctx.counts.add(node)
    pointing = {n: p.layout for n in node.all_input_nodes if (p := ctx.pointed(n)) is not None}
    if not keeps and op not in _USES:
        for layout in pointing.values():
            ctx.freeze(layout, "positions are reckoned with", node)
    if op in (aten.index, aten.index_select) and source in ctx.derived and pointing:
        # A weight that was chosen by data is a weight.
        ctx.derived.add(node)
        for index, layout in pointing.items():
            if index is not source:
                ctx.tag(layout, "expert")


def settle(ctx: Context) -> None:
    """Freeze what may only go if units are chosen from it, and are not."""
    chosen = {dim for layout, tag in ctx.tags if tag == "chosen" for dim in dims.atoms(layout)}
    for layout, reason in ctx.unless_chosen:
        if not chosen.issuperset(dims.atoms(layout)):
            dims.freeze(layout, reason)


def least_of(least: list[tuple[Layout, int]]) -> dict[Dim, int]:
    """How many units of each dim have to stay, so that as many as before can be chosen.

    Where groups of units are chosen first, units are chosen from those groups. Beside units that
    cannot go fewer have to stay.
    """
    found: dict[Dim, int] = {}
    for layout, k in sorted(least, key=lambda each: len(list(dims.atoms(each[0])))):
        layout = resolve(layout)
        if isinstance(layout, Dim):
            found[find(layout)] = max(k, found.get(find(layout), 1))
        elif isinstance(layout, Product):
            inner = list(dims.atoms(layout))
            for dim in inner:
                others = (found.get(each, each.size) for each in inner if each is not dim)
                found[dim] = max(found.get(dim, 1), math.ceil(k / math.prod(others)))
        else:
            inner = list(dims.atoms(layout))
            fixed = layout.size - sum(dim.size for dim in inner if not dim.frozen)
            for dim in inner:
                found[dim] = max(found.get(dim, 1), k - fixed)
    return found
