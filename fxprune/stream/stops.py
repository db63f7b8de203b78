"""Where a propagated run stops: at the one consumer of each group, in graph order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, fx

from fxprune.axes.dims import Dim, atoms, find
from fxprune.errors import CriterionError
from fxprune.groups.consumers import Consumer, consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance.criterion import Criterion

aten = torch.ops.aten

# A part of a fused axis, such as the queries of a fused QKV projection, may lack the units.
_PICKS = {operator.getitem, aten.slice, aten.narrow, aten.select}

_MEND = "leave such groups out with kinds= or groups=, or use estimate and select"


@dataclass(frozen=True, eq=False)
class Stop:
    """A consumer, and the groups whose units it reads (heads and their dims, say)."""

    consumer: Consumer
    groups: tuple[Group, ...]


Stage = tuple[Stop, ...]


def stages_of(
    graph: DependencyGraph,
    criterion: Criterion,
    chosen: Sequence[Group],
    by: Literal["layer", "group"],
) -> list[Stage]:
    """The stops in graph order, put together where all are scored before any loses units.

    Args:
        graph: the groups of the model.
        criterion: who asks, for the error.
        chosen: the groups to score.
        by: ``layer`` puts stops of one numbered layer together that follow each other.

    Raises:
        CriterionError: a group cannot be scored or switched off at one consumer.
    """
    held: dict[fx.Node, tuple[Consumer, list[Group]]] = {}
    reasons = reasons_against(graph, chosen)
    for group in chosen:
        found = consumers(graph, group)
        if reason := reasons.get(group.name):
            raise CriterionError(
                f"{criterion!r} cannot be propagated through group {group.name!r} "
                f"({group.kind}): {reason}; {_MEND}"
            )
        held.setdefault(found[0].node, (found[0], []))[1].append(group)
    ordered = (held[node] for node in graph.traced.graph_module.graph.nodes if node in held)
    stops = [Stop(consumer, tuple(groups)) for consumer, groups in ordered]

    def key(numbered: tuple[int, Stop]) -> object:
        number, stop = numbered
        layer = stop.groups[0].layer
        return number if by == "group" or layer is None else layer

    return [tuple(stop for _, stop in each) for _, each in groupby(enumerate(stops), key)]


def reasons_against(graph: DependencyGraph, groups: Sequence[Group]) -> dict[str, str]:
    """Groups whose units cannot be switched off at one consumer, by name, and why."""
    others = _readers(graph)
    found = {
        group.name: _reason_against(group, consumers(graph, group), others.get(find(group.dim), []))
        for group in groups
    }
    return {name: reason for name, reason in found.items() if reason is not None}


def _reason_against(
    group: Group, found: Sequence[Consumer], others: Sequence[fx.Node]
) -> str | None:
    """Why zeroing the units in the input of one consumer is not to remove them."""
    if not found:
        return "no product with a weight reads its units as input"
    if group.normalised:
        return "its units are averaged, where a unit that is zero still counts"
    nodes = list(dict.fromkeys((*(consumer.node for consumer in found), *others)))
    if len(nodes) > 1:
        names = ", ".join(node.name for node in nodes[:3])
        return f"{len(nodes)} ops read its units ({names}, ...), and only one may"
    return None


def _readers(graph: DependencyGraph) -> dict[Dim, list[fx.Node]]:
    """For every dim the ops that read its units and do not pass them on."""
    found: dict[Dim, list[fx.Node]] = {}
    for node in graph.traced.graph_module.graph.nodes:
        packet = getattr(node.target, "overloadpacket", node.target)
        if packet in _PICKS or not isinstance(node.meta.get("val"), Tensor | tuple | list):
            continue  # a part that may lack the units, or a size
        passed = _dims(graph, node)
        for dim in dict.fromkeys(d for s in node.all_input_nodes for d in _dims(graph, s)):
            if dim not in passed:
                found.setdefault(dim, []).append(node)
    return found


def _dims(graph: DependencyGraph, node: fx.Node) -> dict[Dim, None]:
    axes = graph.inferred.axes.get(node, ())
    values = axes if isinstance(axes, list) else [axes]
    return dict.fromkeys(dim for value in values for layout in value for dim in atoms(layout))
