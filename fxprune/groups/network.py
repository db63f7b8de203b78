"""The neuron graph in networkx: who feeds whom, one to one or all to all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

import networkx as nx
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.axes import dims
from fxprune.axes.dims import Dim, Layout
from fxprune.groups.group import Group
from fxprune.ops.context import Inferred, Link
from fxprune.trace.source import location, module_path
from fxprune.trace.traced import Traced

# A neuron set: an FX value and the group one of its axes belongs to.
NeuronSet = tuple[str, str]


def build(traced: Traced, inferred: Inferred, groups: Iterable[Group]) -> nx.MultiDiGraph:
    """The neuron graph (DepGraph's view of LLM-Pruner, section 3.1).

    A node is a :data:`NeuronSet` with ``size``, ``group``, ``kind``, ``parameter`` (a weight rather
    than an activation), ``module`` and ``source``. An edge is data flow with ``fan`` ``one``
    (neuron k feeds neuron k) or ``all`` (a dense contraction); ``data`` is False where two operands
    of a contraction merely share an axis. ``degree`` is what the edge adds to the in-degree of one
    target neuron, ``out_degree`` what it adds to the out-degree of one source neuron.
    """
    by_dim = {group.dim: group for group in groups}
    network = nx.MultiDiGraph()
    stated: dict[fx.Node, list[Link]] = {}
    for link in inferred.links:
        stated.setdefault(link.target if link.data else link.source, []).append(link)
    for node, axes in inferred.axes.items():
        present = _groups_in(pytree.tree_leaves(axes), by_dim)
        for group in present:
            network.add_node(
                (node.name, group.name),
                size=group.size,
                group=group.name,
                kind=group.kind,
                parameter=node in inferred.derived,
                tensor=str(node.target) if node.op == "get_attr" else None,
                module=module_path(node),
                source=location(node),
            )
    for node in inferred.axes:
        explicit = [link for link in stated.get(node, ()) if link.data]
        if explicit:
            for link in explicit:
                _add_link(network, link, by_dim)
        else:
            _add_shared(network, node, inferred, by_dim)
    for link in inferred.links:
        if not link.data:
            _add_link(network, link, by_dim)
    return network


def _groups_in(layouts: Iterable[Layout], by_dim: Mapping[Dim, Group]) -> list[Group]:
    found = (by_dim.get(dim) for layout in layouts for dim in dims.atoms(layout))
    return list(dict.fromkeys(group for group in found if group is not None))


def _add_shared(
    network: nx.MultiDiGraph, node: fx.Node, inferred: Inferred, by_dim: Mapping[Dim, Group]
) -> None:
    """An op without contraction passes every dim that it shares with an input one to one."""
    mine = set(_groups_in(pytree.tree_leaves(inferred.axes[node]), by_dim))
    for source in node.all_input_nodes:
        if source not in inferred.axes:
            continue
        for group in _groups_in(pytree.tree_leaves(inferred.axes[source]), by_dim):
            if group in mine:
                _add_edge(network, (source.name, group.name), (node.name, group.name), "one", True)


def _add_link(network: nx.MultiDiGraph, link: Link, by_dim: Mapping[Dim, Group]) -> None:
    sources = list(dims.atoms(link.source_layout))
    targets = list(dims.atoms(link.target_layout))
    pairs: Iterator[tuple[Dim, Dim]]
    if link.fan == "one":
        if len(sources) != len(targets):
            return  # a clash: both sides are frozen
        pairs = iter(zip(sources, targets, strict=True))
    else:
        pairs = ((a, b) for a in sources for b in targets)
    counts = prod(d.size for d in sources), prod(d.size for d in targets)
    for a, b in dict.fromkeys(pairs):
        if a in by_dim and b in by_dim:
            source = (link.source.name, by_dim[a].name)
            target = (link.target.name, by_dim[b].name)
            _add_edge(network, source, target, link.fan, link.data, counts)


def _add_edge(
    network: nx.MultiDiGraph,
    source: NeuronSet,
    target: NeuronSet,
    fan: str,
    data: bool,
    counts: tuple[int, int] = (1, 1),
) -> None:
    if source not in network or target not in network:
        return
    into, out = counts if fan == "all" else (1, 1)
    network.add_edge(source, target, fan=fan, data=data, degree=into, out_degree=out)
