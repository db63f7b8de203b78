"""Attention in a graph, fused or written out: its queries, keys and values.

Found by structure: a softmax over a product of two activations, whose result is multiplied with a
third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.costs.products import packet_name
from fxprune.ops.op import find_op, packet
from fxprune.ops.reduction import SOFTMAX
from fxprune.trace.arguments import argument

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_FUSED = "scaled_dot_product_attention"
# Packet -> place of the two factors among the arguments.
_FACTORS = {"matmul": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2)}
_ANGLES = ("cos", "sin", "polar")
_END = "inputs"


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention.

    Attributes:
        node: the softmax or the fused op.
        query: what is multiplied with the keys.
        key: the keys as multiplied: repeated for grouped queries, and transposed unless fused.
        value: the values as multiplied.
        scores: the product of queries and keys; None where it is inside the fused op.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scores: fx.Node | None


class Activations:
    """Values that depend on the content of the model's input, and where they come from.

    Masks and rotary angles depend on positions alone and do not count.

    Args:
        graph: the groups of the model.

    Attributes:
        nodes: floating-point values computed from embeddings or floating-point inputs.
        angles: values computed from cosines and sines of positions.
        attentions: every attention, in graph order.
    """

    def __init__(self, graph: DependencyGraph) -> None:
        self.nodes: set[fx.Node] = set()
        self.angles: set[fx.Node] = set()
        for node in graph.traced.graph_module.graph.nodes:
            if self._is_activation(node):
                self.nodes.add(node)
            elif packet_name(node) in _ANGLES or any(
                source in self.angles for source in node.all_input_nodes
            ):
                self.angles.add(node)
        self.attentions = tuple(
            found for node in self.nodes_in_order(graph) if (found := self._attention(node))
        )

    def nodes_in_order(self, graph: DependencyGraph) -> Iterator[fx.Node]:
        """The activations in graph order."""
        return (n for n in graph.traced.graph_module.graph.nodes if n in self.nodes)

    def region(self, node: fx.Node) -> nx.DiGraph:
        """From a value back to the products it comes from: an edge from each value to its sources.

        Products (embeddings, inputs) have an edge to the node ``"inputs"``.
        """
        graph = nx.DiGraph()
        todo = [node]
        while todo:
            here = todo.pop()
            sources = [] if is_product(here) else self._sources(here)
            for source in sources:
                if source not in graph:
                    todo.append(source)
                graph.add_edge(here, source)
            if not sources:
                graph.add_edge(here, _END)
        return graph

    def necks(self, node: fx.Node) -> list[fx.Node]:
        """The values that everything from the products to ``node`` passes, ``node`` first.

        So a key before its heads are repeated is among the necks of the key that is multiplied.
        """
        before: dict[Any, Any] = nx.immediate_dominators(self.region(node), node)
        chain: list[fx.Node] = []
        here = before[_END]
        while here != node:
            chain.append(here)
            here = before[here]
        return [node, *reversed(chain)]

    def projections(self, node: fx.Node) -> list[fx.Node]:
        """The products that a value comes from."""
        return [n for n in self.region(node) if n != _END and is_product(n)]

    def rotations(self, node: fx.Node) -> list[fx.Node]:
        """The multiplications with rotary angles between a value and its products."""
        return [n for n in self.region(node) if n != _END and self.turns(n)]

    def turns(self, node: fx.Node) -> bool:
        """Whether an op multiplies an activation with rotary angles."""
        return (
            packet_name(node) in ("mul", "mul_")
            and node in self.nodes
            and any(source in self.angles for source in node.all_input_nodes)
        )

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if n in self.nodes]

    def _is_activation(self, node: fx.Node) -> bool:
        values = [v for v in pytree.tree_leaves(node.meta.get("val")) if _floating(v)]
        if node.op == "placeholder":
            return bool(values)
        if node.op != "call_function" or not values:
            return False
        return packet_name(node) == "embedding" or any(
            source in self.nodes for source in node.all_input_nodes
        )

    def _attention(self, node: fx.Node) -> Attention | None:
        if packet_name(node) == _FUSED:
            query, key, value = (argument(node, name) for name in ("query", "key", "value"))
            return Attention(node, query, key, value, None)
        if packet(node) not in SOFTMAX:
            return None
        scores = self._search(node, self._sources)
        mixed = self._search(node, lambda n: list(n.users))
        if scores is None or mixed is None:
            return None
        query, key = _factors(scores)
        return Attention(node, query, key, _factors(mixed)[1], scores)

    def _search(self, node: fx.Node, step: Callable[[fx.Node], list[fx.Node]]) -> fx.Node | None:
        """The nearest product of two activations, with no other product on the way."""
        seen: set[fx.Node] = set()
        todo = step(node)
        while todo:
            here = todo.pop(0)
            if here in seen:
                continue
            seen.add(here)
            if is_product(here):
                factors = _factors(here)
                if factors and all(factor in self.nodes for factor in factors):
                    return here
            else:
                todo += step(here)
        return None


def activations(graph: DependencyGraph) -> Activations:
    """The activations of a graph, found once."""
    cache = graph.traced.cache
    known = cache.get("activations")
    if not isinstance(known, Activations):
        known = cache["activations"] = Activations(graph)
    return known


def is_product(node: fx.Node) -> bool:
    """Whether a value is a fresh mixture: a product, or looked up."""
    return find_op(node.target).macs is not None or packet_name(node) == "embedding"


def _factors(node: fx.Node) -> tuple[Any, ...]:
    given: Any = node.args
    if packet_name(node) == "einsum" and len(given[1]) == 2:
        return tuple(given[1])
    return tuple(given[place] for place in _FACTORS.get(packet_name(node), ()))


def _floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
