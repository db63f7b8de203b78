"""What the output of a consumer is added to: the residual stream."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

from fxprune.trace.sizes import form

aten = torch.ops.aten

SAME_ROWS = {
    aten.view, aten.reshape, aten._unsafe_view, aten.contiguous, aten.clone, aten.dropout,
    aten.alias, aten.to, aten._to_copy,
}  # fmt: skip
_ADDS = {aten.add, aten.add_}


def skips(original: fx.Node, small: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The skip operand that a product's output is added to, in both graphs.

    Args:
        original: the product in the original graph.
        small: the same product in the smaller graph.

    Returns:
        None where the output is not added to anything of its shape, or to something that is
        computed only later (parallel branches).
    """
    pair = addition(original), addition(small)
    if pair[0] is None or pair[1] is None:
        return None
    return pair[0][1], pair[1][1]


def ends(products: Sequence[fx.Node]) -> list[fx.Node]:
    """The products and the additions they end in, so that skip operands stay at hand."""
    additions = (addition(node) for node in products)
    return [*products, *(found[0] for found in additions if found is not None)]


def addition(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The add that a product's output ends in, and its other operand."""
    value = node
    while len(value.users) == 1:
        (user,) = value.users
        packet = getattr(user.target, "overloadpacket", None)
        if packet in _ADDS or user.target in (operator.add, operator.iadd):
            return _operands(node, value, user)
        if packet not in SAME_ROWS or user.args[0] is not value:
            return None
        value = user
    return None


def _operands(node: fx.Node, value: fx.Node, add: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    others = [x for x in add.args[:2] if x is not value]
    if len(others) != 1 or add.kwargs.get("alpha", 1) != 1:
        return None
    (other,) = others
    if not isinstance(other, fx.Node) or not other < node:
        return None
    mine, theirs = (x.meta.get("val") for x in (value, other))
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return None
    return (add, other) if form(mine) == form(theirs) else None
