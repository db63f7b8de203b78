"""Tensors made from sizes: fresh dims, mended on rewriting if they turn out to be pruned."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.axes.dims import Axes, Dim
from fxprune.errors import RewriteError
from fxprune.ops.context import Context
from fxprune.ops.op import register_op
from fxprune.ops.patching import list_of_sizes, patches
from fxprune.ops.resize import Resizer

aten = torch.ops.aten


@register_op(
    aten.zeros,
    aten.ones,
    aten.full,
    aten.empty,
    aten.empty_permuted,
    aten.rand,
    aten.randn,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
    aten.scalar_tensor,
)
def filled(ctx: Context, node: fx.Node) -> Axes:
    """Every unit is like the others: a smaller size will do."""
    return ctx.fresh(node)


@register_op(aten.arange)
def counted(ctx: Context, node: fx.Node) -> Axes:
    """Unit k has value k: pruned units are taken out of the full range (ALiBi slopes)."""
    (size, free), *_ = ctx.shape(node)
    reason = ctx.why("numbers along a symbolic axis", node) if free else None
    return (Dim(size, free, reason),)


@register_op(aten.linspace, aten.eye, aten.randperm)
def numbered(ctx: Context, node: fx.Node) -> Axes:
    """Values depend on the size as a whole."""
    return ctx.fresh(node, ctx.why("values depend on the size of this axis", node))


patches(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty)(list_of_sizes(1))
patches(
    aten.zeros, aten.ones, aten.full, aten.empty, aten.empty_permuted, aten.rand, aten.randn
)(list_of_sizes(0))  # fmt: skip


@patches(aten.arange)
def arange_kept(resize: Resizer, old: fx.Node, new: fx.Node) -> fx.Node | None:
    """Keep the numbers of the kept units (a slope of ALiBi belongs to its head)."""
    layout = resize.axes(old)[0]
    if not resize.changed(layout):
        return None
    module = new.graph.owning_module
    if module is None:
        raise RewriteError(f"{new.name}: the graph has no module to hold the kept numbers")
    name = f"_kept_{old.name}"
    module.register_buffer(name, resize.index(layout).to(old.meta["val"].device))
    with new.graph.inserting_after(new):
        index = new.graph.get_attr(name)
    with new.graph.inserting_after(index):
        picked = new.graph.call_function(aten.index_select.default, (new, 0, index))
    new.replace_all_uses_with(picked, delete_user_cb=lambda user: user is not picked)
    index.meta = dict(old.meta)
    picked.meta = dict(old.meta)
    return picked
