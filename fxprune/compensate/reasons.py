"""Why a consumer is left alone, as far as the original graph tells."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.compensate.matrices import CONVOLUTIONS, convolves
from fxprune.groups.consumers import Consumer
from fxprune.ops.op import packet
from fxprune.trace.arguments import argument
from fxprune.trace.traced import Traced

aten = torch.ops.aten


def reason_against(traced: Traced, consumer: Consumer) -> str | None:
    """Why the consumer cannot be compensated, as far as the original graph tells."""
    node = consumer.node
    one = None if consumer.stack is None else consumer.stack.expert
    if (count := uses(traced, consumer.site.tensor, one)) > 1:
        return f"its weight is used in {count} places, and a new value would change them all"
    if any(argument(node, scale) not in (None, 1) for scale in ("alpha", "beta")):
        return "its product is scaled"
    if computes_bias(consumer):
        return "its bias is computed"
    if convolves(consumer):
        if packet(node) not in CONVOLUTIONS:
            return "only plain convolutions in one and two dimensions are supported"
        if isinstance(argument(node, "padding"), str):
            return "its padding is given as a word"
        if consumer.source.meta["val"].dim() != consumer.node.meta["val"].dim() or (
            consumer.source.meta["val"].dim() != traced.tensors[consumer.site.tensor].dim()
        ):
            return "it convolves without a batch axis"
    return None


def computes_bias(consumer: Consumer) -> bool:
    """Whether the product adds something that is not a tensor of the model."""
    node = consumer.node
    added = argument(node, "self" if packet(node) in (aten.addmm, aten.baddbmm) else "bias")
    return added is not None and consumer.bias is None


def uses(traced: Traced, name: str, expert: int | None = None) -> int:
    """How many nodes read a tensor, as it is or transposed; or the part of one expert."""
    node = _read(traced.graph_module.graph, name)
    if node is None:
        return 0
    readers = [u for u in node.users if expert is None or not _of_another(u, expert)]
    return sum(len(u.users) if turns(u) or expert is not None else 1 for u in readers)


def _of_another(node: fx.Node, expert: int) -> bool:
    """Whether a reader of a stack takes the part of another expert."""
    if packet(node) is not aten.select or argument(node, "dim") != 0:
        return False
    return bool(argument(node, "index") != expert)


def turns(node: fx.Node) -> bool:
    """Whether a reader of a matrix only turns it."""
    return packet(node) in {aten.t, aten.numpy_T, aten.transpose, aten.permute}


def _read(graph: fx.Graph, name: str) -> fx.Node | None:
    return next((n for n in graph.nodes if n.op == "get_attr" and n.target == name), None)
