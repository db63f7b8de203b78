"""Values that share memory: what an op that works in place changes besides its own result."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from fxprune.trace.arguments import argument

aten = torch.ops.aten

# Ops that may give back an input as it is, although their schemas do not say so.
_PASS = {
    aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout,
    aten.type_as, aten.sum_to_size, aten.einsum, aten.meshgrid, aten.broadcast_tensors,
    aten.atleast_1d, aten.atleast_2d, aten.atleast_3d, aten.pad,
}  # fmt: skip


def mutates(node: fx.Node) -> bool:
    """Whether the op writes into one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def sources(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments whose memory the result may share."""
    if node.target is operator.getitem or getattr(node.target, "overloadpacket", None) in _PASS:
        yield from node.all_input_nodes
    elif node.target in (operator.iadd, operator.imul, operator.isub):
        yield node.args[0]  # type: ignore[misc]
    elif argument(node, "copy") is not True:
        yield from _annotated(node, writes=False)


def targets(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that the op writes into."""
    if node.target in (operator.iadd, operator.imul, operator.isub):
        yield node.args[0]  # type: ignore[misc]
    if node.target is not aten.detach_.default:  # no value changes
        yield from _annotated(node, writes=True)


def _annotated(node: fx.Node, *, writes: bool) -> Iterator[fx.Node]:
    """Arguments that the schema says are shared with the result, or written into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    for place, named in enumerate(schema.arguments):
        alias = named.alias_info
        if alias is None or (writes and not alias.is_write):
            continue
        given = node.args[place] if place < len(node.args) else node.kwargs.get(named.name)
        yield from _nodes(given)


def _nodes(given: Any) -> Iterator[fx.Node]:
    if isinstance(given, fx.Node):
        yield given
    elif isinstance(given, list | tuple):  # foreach ops write into lists
        for each in given:
            yield from _nodes(each)


class Memory:
    """Which values of a graph may lie in the same memory, and which memory is written to.

    Args:
        graph: any graph of ATen ops.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._above: dict[fx.Node, fx.Node] = {}
        written: list[fx.Node] = []
        for node in graph.nodes:
            for source in sources(node):
                self._join(source, node)
            written.extend(targets(node))
        self._written = {self.root(node) for node in written}

    def root(self, node: fx.Node) -> fx.Node:
        """One node for all that may share the memory of this one."""
        while (above := self._above.get(node, node)) is not node:
            node = above
        return node

    def written(self, node: fx.Node) -> bool:
        """Whether an op writes into the memory of a value, by whatever view of it."""
        return self.root(node) in self._written

    def _join(self, first: fx.Node, second: fx.Node) -> None:
        a, b = self.root(first), self.root(second)
        if a is not b:
            self._above[b] = a


def written(graph: fx.Graph) -> set[fx.Node]:
    """Every value that an op writes into after it was made, itself or through a view of it."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        for target in targets(node):
            found.update(memory(target))
    return found


def memory(node: fx.Node) -> set[fx.Node]:
    """The value and those before it whose memory it may share."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        value = pending.pop()
        if value not in seen:
            seen.add(value)
            pending.extend(sources(value))
    return seen
