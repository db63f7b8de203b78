"""Multiply-accumulates as LLM-Pruner (arXiv 2305.11627, table 3) reports them.

Measured there with ptflops and a hook of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from fxprune.axes.dims import Dim
from fxprune.axes.polynomial import Count, Polynomial, constant, product, total
from fxprune.costs import macs
from fxprune.costs.attention import Activations, Attention, activations
from fxprune.costs.products import packet_name
from fxprune.costs.sizes import ValueSizes
from fxprune.ops.op import find_op, uncounted
from fxprune.trace.arguments import argument

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

# Moves, sums and scalings of activations, for which the counter has no cost.
_FREE = frozenset(
    (
        *("embedding", "to", "_to_copy", "type_as", "dropout", "contiguous", "clone", "detach"),
        *("alias", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "t"),
        *("permute", "squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "slice"),
        *("narrow", "split", "split_with_sizes", "chunk", "unbind", "select", "stack", "cat"),
        *("neg", "add", "add_", "sub", "mul", "mul_", "div", "masked_fill", "where"),
    )
)


def published_macs(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    batch: int = 1,
    length: int = 64,
) -> int:
    """Multiply-accumulates of one forward pass as published: :func:`fxprune.costs.macs` and more.

    Raises:
        CostError: see :func:`as_published`.
    """
    counts = counts or {}
    more = Count(as_published(ValueSizes(graph, set(counts), batch, length)))
    return macs(graph, counts, batch, length) + more.total(counts)


def as_published(sizes: ValueSizes) -> Polynomial:
    """What the paper's counter adds to the matrix products.

    The formula, of a layer with h query heads of size e, n neurons and width d on S tokens (ptflops
    on fp16 modules with a hook for attention):
    ``4 S d h e + h (2 S S e + S S) + 4 S h e + 3 S d n + S n + 4 S d``, that is query, key, value
    and output projections; scores, mixing and softmax; rotary embedding; MLP; SiLU; two RMSNorms.
    The hook knows one number of heads. With grouped queries it therefore counts key and value
    projections, and the rotation of the keys, as if there were as many key/value heads as query
    heads; so does this function, because those are the numbers that were printed.

    Args:
        sizes: the sizes of the graph.

    Returns:
        Softmax (one per score), SiLU (one per neuron), RMSNorm (two per element), rotary embedding
        and, for grouped queries, what the hook counts too much.

    Raises:
        CostError: the model computes something that the paper's counter has no number for (another
            activation function, a layer norm, a bias, experts, keys and queries out of one grouped
            projection). Names it.
    """
    found = activations(sizes.graph)
    # Counted with their attention or norm.
    known = {node for attention in found.attentions for node in _turned(found, attention)}
    parts = []
    for attention in found.attentions:
        known.add(attention.node)
        parts.append(_attention(sizes, found, attention))
    for node in reversed(list(found.nodes_in_order(sizes.graph))):
        if packet_name(node) == "rsqrt" and (steps := _rms_norm(node)):
            known.update(steps)
            parts.append(constant(2) * sizes.elements(_given(steps[-1])))
        elif node not in known:
            parts.append(_alone(sizes, found, node))
    return total(parts)


def _alone(sizes: ValueSizes, found: Activations, node: fx.Node) -> Polynomial:
    """The cost of an op by itself, matrix products excepted."""
    name = packet_name(node)
    if name == "silu":
        return sizes.elements(node)
    if name == "rms_norm":
        return constant(2) * sizes.elements(node)
    if found.turns(node):
        raise uncounted(node, "it rotates neither queries nor keys")
    counted = find_op(node.target).macs is not None
    if counted and (name == "addmm" or argument(node, "bias") is not None):
        raise uncounted(node, "the paper's models have no biases")
    if name and not counted and name not in _FREE:
        raise uncounted(node, "the paper has no formula for it")
    return constant(0)


def _attention(sizes: ValueSizes, found: Activations, attention: Attention) -> Polynomial:
    """Softmax, rotary embedding and the grouped heads that the hook takes for whole ones."""
    query, key, value = (sizes.axes(n) for n in (attention.query, attention.key, attention.value))
    if len(query) != 4 or (attention.scores and packet_name(attention.scores) == "einsum"):
        raise uncounted(attention.node, "its heads are not an axis of their own")
    rows, heads = product(query[:-1]), query[-3]
    keys = key[-2] if attention.scores is None else key[-1]
    turned = found.rotations(attention.query)
    if len(turned) != len(found.rotations(attention.key)):
        raise uncounted(attention.node, "queries and keys are not rotated alike")
    rotary = constant(2) * total(sizes.elements(node) for node in turned)
    grouped = [
        _ungrouped(sizes, found, attention, operand, heads * width)
        for operand, width in ((attention.key, query[-1]), (attention.value, value[-1]))
    ]
    return total((rows * keys, rotary, *grouped))


def _ungrouped(
    sizes: ValueSizes, found: Activations, attention: Attention, operand: fx.Node, width: Polynomial
) -> Polynomial:
    """What a key or value projection costs more when it is as wide as the query's."""
    products = found.projections(operand)
    if len(products) != 1 or packet_name(products[0]) != "linear":
        raise uncounted(attention.node, "its keys and values are not projections of their own")
    (projection,) = products
    *rows, out = sizes.axes(projection)
    if projection in found.projections(attention.query):
        before = min(_dense(sizes, n) for n in found.necks(operand))
        if before == _dense(sizes, operand):
            return constant(0)
        raise uncounted(projection, "queries and grouped keys come out of one projection")
    return product(rows) * sizes.axes(argument(projection, "weight"))[1] * (width - out)


def _dense(sizes: ValueSizes, node: fx.Node) -> float:
    if not isinstance(sizes.graph.inferred.axes[node], tuple):
        return float("inf")
    return sizes.elements(node).value({})


def _turned(found: Activations, attention: Attention) -> list[fx.Node]:
    return [*found.rotations(attention.query), *found.rotations(attention.key)]


def _rms_norm(node: fx.Node) -> list[fx.Node]:
    """The ops of ``rsqrt(mean(x ** 2) + eps)``, last first; none if it is something else."""
    steps = [node]
    for names in (("add",), ("mean",), ("pow", "square")):
        source = _given(steps[-1])
        if packet_name(source) not in names:
            return []
        steps.append(source)
    power = argument(steps[-1], "exponent")
    return steps if power in (None, 2) else []


def _given(node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    assert isinstance(source, fx.Node)
    return source
