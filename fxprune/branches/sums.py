"""Sums in the graph: which operand is the residual stream, which are branches of it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxprune.branches.reach import Reach
from fxprune.ops.op import find_op, packet
from fxprune.trace.sizes import form

aten = torch.ops.aten

_ADDS = {aten.add, aten.add_}
# What a value passes through without becoming another: the same numbers, or scaled ones.
_LIGHT = {
    aten.dropout, aten.dropout_, aten.feature_dropout, aten.alias, aten.clone, aten.contiguous,
    aten.to, aten._to_copy, aten.detach,
}  # fmt: skip
_SCALES = {aten.mul, aten.mul_, aten.div, aten.div_}


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """A sum of a stream and what branches off it.

    Attributes:
        node: the add whose value is the whole sum.
        skip: the term that is the stream, perhaps scaled.
        entry: the value of the stream that both the skip term and the branches come from.
        terms: the branches' values.
    """

    node: fx.Node
    skip: fx.Node
    entry: fx.Node
    terms: tuple[fx.Node, ...]


def residual_sums(graph: fx.Graph, reach: Reach) -> Iterator[ResidualSum]:
    """Every sum that has the stream among its terms, in graph order."""
    for node in graph.nodes:
        if is_sum(node) and not _part_of_another(node):
            yield from _nested(node, reach)


def is_sum(node: fx.Node) -> bool:
    """Whether the node adds two tensors of one shape and dtype, and that of the result."""
    if packet(node) not in _ADDS and node.target not in (operator.add, operator.iadd):
        return False
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return False
    values = [x.meta.get("val") if isinstance(x, fx.Node) else None for x in (node, *node.args)]
    if not all(isinstance(value, torch.Tensor) for value in values):
        return False
    kinds: list[Any] = [(form(v), v.dtype) for v in values if isinstance(v, torch.Tensor)]
    return bool(kinds[0] == kinds[1] == kinds[2] and kinds[0][1].is_floating_point)


def same_value(node: fx.Node) -> fx.Node | None:
    """What the node passes on as it is, or None."""
    if packet(node) not in _LIGHT:
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two terms of an add."""
    first, second = node.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def inner_sum(term: fx.Node) -> fx.Node | None:
    """The add that a term is, if this is its only use; also behind a dropout or a cast."""
    node: fx.Node | None = term
    while node is not None and len(node.users) == 1:
        if is_sum(node):
            return node
        node = same_value(node)
    return None


def _part_of_another(node: fx.Node) -> bool:
    value = node
    while len(value.users) == 1:
        (user,) = value.users
        if is_sum(user):
            return True
        if same_value(user) is not value:
            return False
        value = user
    return False


def _nested(node: fx.Node, reach: Reach) -> Iterator[ResidualSum]:
    """The sum, after those that are a branch of it as a whole."""
    found = _residual(node, reach)
    if found is not None:
        for term in found.terms:
            inner = inner_sum(term)
            if inner is not None:
                yield from _nested(inner, reach)
        yield found


def _residual(node: fx.Node, reach: Reach) -> ResidualSum | None:
    leaves = dict.fromkeys(_leaves(node))
    found: list[ResidualSum] = []
    for skip in leaves:
        others = [leaf for leaf in leaves if leaf is not skip]
        entry: fx.Node | None = skip
        while entry is not None:
            terms = tuple(leaf for leaf in others if reach.descends(leaf, entry))
            if terms:
                found.append(ResidualSum(node, skip, entry, terms))
                break
            entry = _unscaled(entry)
    if not found:
        return None
    # In x + (u + g(u)) the stream is x, from which u comes too.
    widest = max(found, key=lambda each: len(each.terms))
    joined = dict.fromkeys(_joined(node, widest, reach))
    return replace(widest, terms=tuple(joined))


def _joined(node: fx.Node, found: ResidualSum, reach: Reach) -> Iterator[fx.Node]:
    """The branches, where a sum of several that share a matrix is one: ``W(h) + B(A(h))``."""
    for term in operands(node):
        inner = inner_sum(term)
        leaves = {term} if inner is None else set(_leaves(inner))
        if inner is not None and (found.skip in leaves or not _share(inner, found.entry, reach)):
            yield from _joined(inner, found, reach)
        elif found.skip not in leaves and not leaves.isdisjoint(found.terms):
            yield term


def _share(node: fx.Node, entry: fx.Node, reach: Reach) -> bool:
    first, second = (set(reach.between(entry, term)) for term in operands(node))
    return any(find_op(each.target).contracts for each in first & second)


def _leaves(node: fx.Node) -> Iterator[fx.Node]:
    for term in operands(node):
        inner = inner_sum(term)
        if inner is None:
            yield term
        else:
            yield from _leaves(inner)


def constant(node: fx.Node) -> bool:
    """Whether the node is a tensor of the model, perhaps transposed."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node.op == "get_attr"


def _unscaled(node: fx.Node) -> fx.Node | None:
    """What the node is the same as but for a scale or a shift, learned for each feature or not."""
    if packet(node) in _SCALES | _ADDS and not node.kwargs:
        for source, other in (node.args[:2], node.args[1::-1]):
            if isinstance(source, fx.Node) and _for_each_feature(other, source):
                return source
            if packet(node) in (aten.div, aten.div_):
                break
    return same_value(node)


def _for_each_feature(other: Any, source: fx.Node) -> bool:
    """Whether it is a number, or a vector of the model with one for each feature of the source."""
    if not isinstance(other, fx.Node):
        return isinstance(other, int | float)
    value, whole = other.meta.get("val"), source.meta.get("val")
    return (
        constant(other)
        and isinstance(value, torch.Tensor)
        and isinstance(whole, torch.Tensor)
        and whole.dim() > 1
        and form(value) == form(whole)[-1:]
    )
