"""What the output of a consumer is added to: the residual stream."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.ops.op import packet
from fxprune.trace.sizes import form

aten = torch.ops.aten

SAME_ROWS = {
    aten.view, aten.reshape, aten._unsafe_view, aten.contiguous, aten.clone, aten.dropout,
    aten.alias, aten.to, aten._to_copy,
}  # fmt: skip
_ADDS = {aten.add, aten.add_}


@dataclass(frozen=True, eq=False)
class Addition:
    """The sum that the output of a product goes into, and nothing else reads that output.

    Attributes:
        node: the sum, of more than two terms the last add.
        others: its other terms, all computed before the product.
        views: the sum, and what nothing but passes it on in the same rows.
    """

    node: fx.Node
    others: tuple[fx.Node, ...]
    views: tuple[fx.Node, ...]


def addition(product: fx.Node) -> Addition | None:
    """The sum that a product's output ends in.

    None where it is not added to anything of its shape, or to something that is computed only
    later, as the first of parallel branches is.
    """
    value = product
    others: list[fx.Node] = []
    views: list[fx.Node] = []
    while len(value.users) == 1:
        (user,) = value.users
        if packet(user) in _ADDS or user.target in (operator.add, operator.iadd):
            other = _other(product, value, user)
            if other is None:
                break
            others, views = [*others, other], [user]
        elif not _same_rows(user) or user.args[0] is not value:
            break
        elif views:
            views.append(user)
        value = user
    return Addition(views[0], tuple(others), tuple(views)) if views else None


def _same_rows(node: fx.Node) -> bool:
    if node.op != "call_module":
        return packet(node) in SAME_ROWS
    module = node.graph.owning_module
    dropout = nn.modules.dropout._DropoutNd
    return module is not None and isinstance(module.get_submodule(str(node.target)), dropout)


def _other(product: fx.Node, value: fx.Node, add: fx.Node) -> fx.Node | None:
    others = [x for x in add.args[:2] if x is not value]
    if len(others) != 1 or add.kwargs.get("alpha", 1) != 1:
        return None
    (other,) = others
    if not isinstance(other, fx.Node) or not other < product:
        return None
    mine, theirs = (x.meta.get("val") for x in (value, other))
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return None
    return other if form(mine) == form(theirs) else None
