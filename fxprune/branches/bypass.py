"""A traced model without some of its residual branches and blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fxprune.branches.find import Branches, find_branches
from fxprune.branches.reach import Flow
from fxprune.branches.sums import is_sum, operands, same_value
from fxprune.branches.unit import Unit
from fxprune.trace import storage
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.traced import Traced


def bypass(traced: Traced, names: Iterable[str]) -> Traced:
    """The model without some residual branches and blocks, as if it had been traced so.

    What leaves a block is replaced by what enters it, a sum by its other terms. Nodes that only the
    removed parts used go, and so do their parameters. Nothing is computed and no tensor is copied:
    the result shares its tensors with ``traced``, which is not changed.

    Args:
        traced: the model; one that was bypassed already loses the units in addition.
        names: units of :func:`find_branches`. Branches of a block that goes may be named too.

    Returns:
        The shorter model, with ``original`` and ``removed`` set; ``traced`` itself if ``names``
        adds nothing. It is made once and kept with the original.

    Raises:
        DepthError: a name is unknown, or its unit cannot be removed.
    """
    original = traced.original or traced
    removed = canonical(original, (*traced.removed, *names))
    if removed == traced.removed:
        return traced
    made: dict[tuple[str, ...], Traced] = original.cache.setdefault("bypassed", {})
    if removed not in made:
        found = find_branches(original)
        made[removed] = _shorter(original, removed, [found[name] for name in removed])
    return made[removed]


def stands_for(traced: Traced) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Of each node of a graph, the nodes of the original that it stands for, in graph order.

    First the one that it is itself; then, where units were bypassed behind it, the values that left
    those, for it takes their place.
    """
    known: dict[fx.Node, tuple[fx.Node, ...]] | None = traced.cache.get("stands for")
    return known or {node: (node,) for node in traced.graph_module.graph.nodes}


def canonical(traced: Traced, names: Iterable[str]) -> tuple[str, ...]:
    """The names once each and in graph order, without those inside others.

    Raises:
        DepthError: a name is unknown, or its unit cannot be removed.
    """
    found = find_branches(traced)
    wanted = {name: found[name] for name in names}
    return tuple(
        name
        for name in found.units
        if name in wanted
        and not any(wanted[name].inside < other.inside for other in wanted.values())
    )


def _shorter(original: Traced, removed: tuple[str, ...], units: list[Unit]) -> Traced:
    module = original.graph_module
    graph, nodes, behind = _without(module.graph, units)
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    root = nn.Module()
    for name in read:
        value = original.tensors.get(name)
        set_attribute(root, name, get_attribute(module, name) if value is None else value)
    graph.set_codegen(copy.copy(module.graph._codegen))
    shorter = fx.GraphModule(root, graph, class_name=type(original.module).__name__)
    shorter.meta.update(module.meta)
    shorter.graph.lint()
    gone = {
        name
        for name, tensor in original.tensors.items()
        if name not in read and isinstance(tensor, nn.Parameter)
    }
    made = Traced(
        shorter,
        original.module,
        original.args,
        original.kwargs,
        {name: tensor for name, tensor in original.tensors.items() if name in read},
        original.aliases,
        original.sizes,
        original.guards,
        original=original,
        removed=removed,
        dropped=frozenset(gone),
    )
    # Units keep the names they have in the original.
    made.cache["branches"] = _left(find_branches(original), removed, nodes, made.tensors)
    made.cache["stands for"] = _places(nodes, behind)
    return made


def _places(
    nodes: dict[fx.Node, fx.Node], behind: dict[fx.Node, fx.Node]
) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """What each node of the shorter graph stands for, see :func:`stands_for`."""
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for old, new in nodes.items():
        found.setdefault(new, (old,))
    for old, new in behind.items():
        if new in found and old not in found[new]:
            found[new] += (old,)
    return found


def _left(
    found: Branches,
    removed: tuple[str, ...],
    nodes: dict[fx.Node, fx.Node],
    tensors: dict[str, torch.Tensor],
) -> Branches:
    """The units that are left, on the nodes of the shorter graph.

    What a removed unit shared with one that is left may be that one's own now.
    """
    off = {*removed, *(branch for name in removed for branch in found[name].branches)}
    left = {}
    flow = Flow(next(iter(nodes.values())).graph)
    parameters = [name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
    for name, unit in found.units.items():
        if name in off or not {unit.entry, unit.exit, unit.skip} <= nodes.keys():
            continue
        entry, leaves = nodes[unit.entry], nodes[unit.exit]
        if entry is not leaves:
            dead = flow.dying(leaves, leaves.users, entry)
            read = {str(node.target) for node in dead if node.op == "get_attr"}
            left[name] = replace(
                unit,
                entry=entry,
                exit=leaves,
                skip=nodes[unit.skip],
                inside=frozenset(nodes[node] for node in unit.inside if node in nodes) - {entry},
                parameters=tuple(name for name in parameters if name in read),
                branches=tuple(branch for branch in unit.branches if branch not in off),
            )
    return Branches(left, found.refused, found.module)


def _without(
    graph: fx.Graph, units: list[Unit]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node], dict[fx.Node, fx.Node]]:
    """A copy of the graph without the units, and what became of each node that is left.

    The last is of the values behind units: what stands before the units now.
    """
    lost = {node for unit in units for node in unit.inside}
    replaced = {unit.exit: unit.entry for unit in units if unit.kind == "block"}
    # Terms that are no more, and what passes only those on.
    gone = {unit.exit for unit in units if unit.kind != "block"}
    changed = storage.written(graph)
    short = fx.Graph()
    nodes: dict[fx.Node, Any] = {}
    behind: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in replaced:
            behind[node] = nodes[replaced[node]]
            nodes[node] = _instead(short, node, replaced[node], nodes, changed)
        elif node in lost:
            continue
        elif gone and is_sum(node) and (rest := _rest(node, gone)) is not None:
            if rest:
                behind[node] = nodes[rest[0]]
                nodes[node] = _instead(short, node, rest[0], nodes, changed)
            else:
                gone.add(node)
        elif same_value(node) in gone:
            gone.add(node)
        else:
            nodes[node] = short.node_copy(node, lambda n: nodes[n])
            nodes[node].meta = dict(node.meta)
    short.eliminate_dead_code()
    alive = set(short.nodes)
    return short, {old: new for old, new in nodes.items() if new in alive}, behind


def _instead(
    short: fx.Graph,
    node: fx.Node,
    source: fx.Node,
    nodes: dict[fx.Node, fx.Node],
    changed: set[fx.Node],
) -> fx.Node:
    """What stands for a node: the source, or a copy if an op would write into the source."""
    if node not in changed or source in storage.memory(node):
        return nodes[source]
    copied = short.call_function(torch.ops.aten.clone.default, (nodes[source],))
    copied.meta = dict(node.meta)
    return copied


def _rest(node: fx.Node, gone: set[fx.Node]) -> list[fx.Node] | None:
    """The terms of a sum that are left; None if it lost none."""
    left = [term for term in operands(node) if term not in gone]
    return None if len(left) == 2 else left
