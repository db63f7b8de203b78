"""Which Linears gain a bias where a group loses units.

A product ``y = x W`` whose input loses units loses their mean as well. A bias can give it back
(FLAP, arXiv 2312.11983), if the product has room for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxprune.axes.dims import Dim, find
from fxprune.groups.consumers import Consumer, consumers
from fxprune.trace.arguments import argument

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group


def gainable(graph: DependencyGraph, groups: Iterable[Group]) -> dict[str, frozenset[Dim]]:
    """The biases that could be added to the consumers of some groups.

    Args:
        graph: the groups of the model.
        groups: those that may lose units.

    Returns:
        Name of the bias to the dims of the groups its Linear reads: it is gained as soon as one of
        them loses a unit.
    """
    found: dict[str, frozenset[Dim]] = {}
    for group in groups:
        for consumer in consumers(graph, group):
            if _has_room(graph, consumer):
                name = f"{consumer.module}.bias".removeprefix(".")
                found[name] = found.get(name, frozenset()) | {find(group.dim)}
    return found


def gained(biases: Mapping[str, frozenset[Dim]], counts: Mapping[Dim, int]) -> list[str]:
    """The biases of which a dim has lost units, sorted."""
    return sorted(
        name
        for name, dims in biases.items()
        if any(counts.get(dim, dim.size) < dim.size for dim in dims)
    )


def _has_room(graph: DependencyGraph, consumer: Consumer) -> bool:
    """Whether the weight belongs to one nn.Linear without a bias and the op adds none."""
    if getattr(consumer.node.target, "overloadpacket", None) is not torch.ops.aten.linear:
        return False
    weight = consumer.site.tensor
    # A weight that two modules share (an embedding and a head, say) has no one owner.
    names = [weight, *(a for a, canonical in graph.traced.aliases.items() if canonical == weight)]
    owners = [graph.traced.module.get_submodule(name.rpartition(".")[0]) for name in names]
    return (
        isinstance(owners[0], nn.Linear)
        and all(owner is owners[0] for owner in owners)
        and owners[0].bias is None
        and argument(consumer.node, "bias") is None
    )
