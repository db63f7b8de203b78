"""What scales a model's logits: the last norm's weight or, where there is none, the head's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.compensate.reasons import computes_bias, uses
from fxprune.compensate.residual import SAME_ROWS
from fxprune.data.loss import logits_of
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import Consumer, every_consumer
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.op import packet
from fxprune.trace.arguments import argument
from fxprune.trace.traced import Traced

aten = torch.ops.aten

_NORMS = {aten.layer_norm, aten.rms_norm}
_CASTS = {aten.to, aten._to_copy, aten.alias, aten.detach}
# Between the norm and the head only values may be chosen, moved or multiplied by a number.
_PASSES = SAME_ROWS | {
    aten.detach, aten.flatten, aten.permute, aten.transpose, aten.squeeze, aten.unsqueeze,
    aten.expand, aten.select, aten.slice, aten.mul, aten.div,
}  # fmt: skip


@dataclass(frozen=True)
class Factor:
    """A tensor of the original whose values, plus an offset, multiply the logits.

    Attributes:
        tensor: canonical FQN.
        offset: added to it before it multiplies (1 in a norm that stores its weight less 1).
    """

    tensor: str
    offset: float = 0.0


def head(graph: DependencyGraph) -> Consumer | None:
    """The product that the logits are made of; a cap on them may follow it."""
    products = {consumer.node: consumer for consumer in every_consumer(graph)}
    node = logits_node(graph.traced)
    while node is not None and node not in products:
        activations = _activations(node)
        node = activations[0] if len(activations) == 1 else None
    return None if node is None else products[node]


def factors(graph: DependencyGraph) -> tuple[Factor, ...] | str:
    """The tensors that scale the logits together, or why there are none.

    The weight and the bias of the last norm, if only the head reads it; else those of the head, if
    nothing else reads them.
    """
    traced, product = graph.traced, head(graph)
    if product is None:
        return "its output is not a product with a weight"
    found = _norm(traced, product.source)
    if not found and not computes_bias(product):
        own = [Factor(name) for name in (product.site.tensor, product.bias) if name is not None]
        found = own if all(uses(traced, each.tensor) == 1 for each in own) else []
    return tuple(found) or "the weight of its head has other uses, and no norm stands before it"


def logits_node(traced: Traced) -> fx.Node | None:
    """The node of the logits, None where the model gives none."""
    graph = traced.graph_module.graph
    leaves: Any = graph.output_node().args[0]
    values = [leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    try:
        logits = logits_of(traced.module, graph.process_outputs(values))
    except CalibrationError:
        return None
    return next((n for n, v in zip(leaves, values, strict=True) if v is logits), None)


def _norm(traced: Traced, node: fx.Node) -> list[Factor]:
    """Weight and bias of the norm that a value comes from, if it has them to itself."""
    found: list[Factor] = []
    while len(node.users) == 1:
        op = packet(node)
        if op in _NORMS:
            read = [_factor(traced, argument(node, name)) for name in ("weight", "bias")]
            return [each for each in read if each is not None] if read[0] is not None else []
        activations = _activations(node)
        if len(activations) != 1:
            return []
        if len(node.all_input_nodes) == 2 and op in (aten.mul, aten.add):
            factor = next(filter(None, (_factor(traced, x) for x in node.all_input_nodes)), None)
            if factor is None:
                return []
            found.append(factor)
            if op is aten.mul:
                return found
        elif op not in _PASSES:
            return []
        (node,) = activations
    return []


def _activations(node: fx.Node) -> list[fx.Node]:
    """The tensors that an op reads and that are not made of weights alone."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    return [each for each in tensors if not _constant(each)]


def _constant(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op == "get_attr"
    return bool(node.all_input_nodes) and all(map(_constant, node.all_input_nodes))


def _factor(traced: Traced, value: Any) -> Factor | None:
    """The parameter that a value is, but for its dtype and a number that is added."""
    offset = 0.0
    while isinstance(value, fx.Node) and value.op == "call_function":
        if packet(value) is aten.add and len(value.all_input_nodes) == 1:
            offset += float(argument(value, "other"))
        elif packet(value) not in _CASTS:
            return None
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    name = str(value.target)
    known = isinstance(traced.tensors.get(name), nn.Parameter) and uses(traced, name) == 1
    return Factor(name, offset) if known else None
