"""Consumers: the matrix products that read a group's units as their input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import find
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group, Site
from fxprune.groups.origin import Origin, origin_of
from fxprune.groups.stacked import Stack, stack_of
from fxprune.ops.op import find_op
from fxprune.trace.arguments import argument
from fxprune.trace.traced import Traced

aten = torch.ops.aten

_TRANSPOSES = {aten.t, aten.numpy_T, aten.transpose, aten.permute}


@dataclass(frozen=True, eq=False)
class Consumer:
    """One use of a weight whose input axis holds units of a group: ``y = x W``.

    Attributes:
        site: the weight, its input axis and that axis' layout.
        output_axis: the weight's output axis.
        node: the op.
        source: the op's activation ``x``.
        source_axis: the axis of ``x`` that ``site.layout`` lies on: -1 or, of a convolution, 1.
        bias: canonical FQN of the bias that the op adds, if it is a tensor of the model.
        stack: how rows meet matrices, if the weight is a stack of those of experts.
    """

    site: Site
    output_axis: int
    node: fx.Node
    source: fx.Node
    source_axis: int
    bias: str | None
    stack: Stack | None = None

    @property
    def module(self) -> str:
        """FQN of the module that owns the weight."""
        return self.site.tensor.rpartition(".")[0]


def every_consumer(graph: DependencyGraph) -> tuple[Consumer, ...]:
    """Every product of an activation with a weight, whether units may go from it or not."""
    nodes = graph.traced.graph_module.graph.nodes
    return tuple(found for node in nodes for found in _of_node(graph, node))


def consumers(graph: DependencyGraph, group: Group) -> tuple[Consumer, ...]:
    """Every use of the group's units as the input of a product with a weight, in graph order.

    Only weights that the op reads as they are, or transposed, count: not one that is scaled first.
    """
    known = graph.traced.cache.get("consumers")
    if known is None:
        known = graph.traced.cache["consumers"] = _by_group(graph)
    return known.get(group.name, ())


def _by_group(graph: DependencyGraph) -> dict[str, tuple[Consumer, ...]]:
    groups = {find(group.dim): group for group in (*graph.groups, *graph.frozen)}
    found: dict[str, list[Consumer]] = {}
    for consumer in every_consumer(graph):
        held = dict.fromkeys(dims.atoms(consumer.site.layout))
        for group in (groups[dim] for dim in held if dim in groups):
            found.setdefault(group.name, []).append(consumer)
    return {name: tuple(each) for name, each in found.items()}


def _of_node(graph: DependencyGraph, node: fx.Node) -> Iterator[Consumer]:
    if (stack := stack_in(graph.traced, node)) is not None:
        name = str(stack.weight.target)
        site = Site(name, stack.inner, graph.layouts[name][stack.inner], True)
        yield Consumer(site, stack.outer, node, stack.source, stack.axis, None, stack)
        return
    product = find_op(node.target).product
    if node.op != "call_function" or product is None:
        return
    inner, outer, source_axis = product.inner, product.outer, product.axis
    source, weight = argument(node, product.activation), argument(node, product.weight)
    if argument(node, "transposed"):
        inner, outer = outer, inner
    if _transposes(weight):
        weight, inner, outer = weight.args[0], outer, inner
    if not _is_tensor(graph, weight) or not isinstance(source, fx.Node):
        return
    tensor = graph.traced.tensors[str(weight.target)]
    if tensor.dim() < 2 or (source_axis == 1 and argument(node, "groups") != 1):
        return  # a convolution in groups reads each unit apart
    if not isinstance(tensor, torch.nn.Parameter):
        return
    bias = argument(node, product.bias)
    layouts = graph.layouts[str(weight.target)]
    yield Consumer(
        site=Site(str(weight.target), inner, layouts[inner], True),
        output_axis=outer,
        node=node,
        source=source,
        source_axis=source_axis,
        bias=str(bias.target) if _is_tensor(graph, bias) else None,
    )


def stack_in(traced: Traced, node: fx.Node) -> Stack | None:
    """The product with a stacked weight that a node of the traced or of a smaller graph is."""
    return stack_of(node, lambda read: _is_parameter(traced, read))


def origin_in(traced: Traced, stack: Stack) -> Origin | None:
    """Where its rows come from, None where that cannot be told."""

    def shape(node: fx.Node) -> tuple[int, ...]:
        value = node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        return tuple(map(traced.sizes.value, value.shape))

    return origin_of(stack, lambda read: _is_parameter(traced, read), shape)


def _is_parameter(traced: Traced, node: object) -> bool:
    tensor = (
        traced.tensors.get(str(node.target))
        if isinstance(node, fx.Node) and node.op == "get_attr"
        else None
    )
    return isinstance(tensor, torch.nn.Parameter)


def _transposes(node: object) -> bool:
    if not isinstance(node, fx.Node) or not isinstance(value := node.meta.get("val"), torch.Tensor):
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return value.dim() == 2 and packet in _TRANSPOSES


def _is_tensor(graph: DependencyGraph, node: object) -> bool:
    return (
        isinstance(node, fx.Node) and node.op == "get_attr" and node.target in graph.traced.tensors
    )
