"""Why tensors are coupled: for every site of a group the shortest path that the rules follow."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import networkx as nx
from torch import fx

from fxprune.errors import GroupError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group, Site
from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.wires import Wire, wires
from fxprune.inspect.explanation import Coupling, DependencyPath, Explanation, Step, Way
from fxprune.trace.source import location, module_path


def explain(graph: DependencyGraph, name: str, to: str | None = None) -> Explanation:
    """Say why tensors are coupled.

    Args:
        graph: what :func:`fxprune.discover` found.
        name: a group; or a tensor or a module, whose groups are each explained, from there.
        to: only the paths to this tensor, or to the tensors of this module.

    Raises:
        GroupError: no group, tensor or module has that name; or ``to`` shares no group with it.
    """
    if name in graph:
        groups, origin = [graph[name]], frozenset([graph[name].sites[0].tensor])
    else:
        origin = _tensors(graph, name)
        groups = [g for g in (*graph.groups, *graph.frozen) if _at(g, origin)]
    wanted = None if to is None else _tensors(graph, to)
    if wanted is not None:
        groups = [group for group in groups if _at(group, wanted)]
        if not groups:
            raise GroupError(f"{name} and {to} are in no group together: they are not coupled")
    return Explanation(name, tuple(_coupling(graph, g, _at(g, origin)[0], wanted) for g in groups))


def _tensors(graph: DependencyGraph, name: str) -> frozenset[str]:
    """The tensors of that name, or in the module of that name, by their canonical names."""
    every = dict.fromkeys((*graph.layouts, *graph.traced.aliases))
    found = [n for n in every if n == name or n.startswith(f"{name}.")] if name else []
    tensors = frozenset(map(graph.traced.canonical, found)) & graph.layouts.keys()
    if any(_at(group, tensors) for group in (*graph.groups, *graph.frozen)):
        return tensors
    if tensors:
        raise GroupError(f"{name} is in no group: none of its axes holds units of a parameter")
    modules = (tensor.rpartition(".")[0] for tensor in every)
    groups = (group.name for group in (*graph.groups, *graph.frozen))
    close = difflib.get_close_matches(name, dict.fromkeys((*groups, *every, *modules)), n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise GroupError(f"no group, tensor or module {name!r}{hint}")


def _at(group: Group, tensors: Iterable[str]) -> list[Site]:
    return [site for site in group.sites if site.tensor in tensors]


def _coupling(
    graph: DependencyGraph, group: Group, start: Site, wanted: frozenset[str] | None
) -> Coupling:
    joined, places = _joined(graph, group)
    origin = places.get(start.tensor)
    reached: Mapping[NeuronSet, list[NeuronSet]] = {}
    if origin is not None and origin in joined:
        reached = nx.single_source_shortest_path(joined, origin)
    paths: dict[Site, list[NeuronSet] | None] = {}
    seen = {start.tensor}
    paths[start] = [] if origin is None else [origin]
    for site in group.sites:
        if site == start:
            continue
        place = places.get(site.tensor)
        path = None if place is None else reached.get(place)
        if path is not None and site.tensor in seen:  # its other axis
            back = _round(joined, path[-1])
            path = [*path, *back[1:]] if back else None
        seen.add(site.tensor)
        paths[site] = path
    following = _Steps(graph, joined)
    return Coupling(
        group.name,
        group.kind,
        group.size,
        len(group.sites),
        group.reason,
        str(start),
        tuple(
            DependencyPath(s.tensor, s.axis, None if p is None else tuple(following.steps(p)))
            for s, p in paths.items()
            if wanted is None or s.tensor in wanted
        ),
    )


def _joined(graph: DependencyGraph, group: Group) -> tuple[nx.Graph, dict[str, NeuronSet]]:
    """The group's neuron sets, joined where a rule leads; and the one of each tensor."""
    network = graph.network
    members = dict.fromkeys(neurons for neurons in network if neurons[1] == group.name)
    joined = nx.Graph()
    joined.add_nodes_from(members)
    for wire in wires(network, members):
        if wire.rules and wire.source in members and wire.target in members:
            joined.add_edge(wire.source, wire.target, wire=wire)
    places: dict[str, NeuronSet] = {}
    for neurons in members:
        tensor = network.nodes[neurons]["tensor"]
        if tensor is not None:
            places.setdefault(tensor, neurons)
    return joined, places


def _round(joined: nx.Graph, start: NeuronSet) -> list[NeuronSet] | None:
    """From a tensor back to it: how two of its axes come to be in one group."""
    stem = [start]
    while joined.degree(stem[-1]) <= 2 and len(on := set(joined[stem[-1]]) - set(stem)) == 1:
        stem.append(on.pop())  # such as the transposed weight
    rest = nx.restricted_view(joined, stem, [])
    ends = list(set(joined[stem[-1]]) - set(stem))
    ends.sort()
    found: list[list[NeuronSet]] = [
        nx.shortest_path(rest, a, b)
        for number, a in enumerate(ends)
        for b in ends[number + 1 :]
        if nx.has_path(rest, a, b)
    ]
    return [*stem, *min(found, key=len), *reversed(stem)] if found else None


class _Steps:
    """Puts edges into words: op, module, line, rules."""

    def __init__(self, graph: DependencyGraph, joined: nx.Graph) -> None:
        self._network = graph.network
        self._joined = joined
        self._nodes: dict[str, fx.Node] = {
            node.name: node for node in graph.traced.graph_module.graph.nodes
        }

    def steps(self, path: list[NeuronSet]) -> Iterator[Step]:
        for here, there in pairwise(path):
            wire: Wire = self._joined.edges[here, there]["wire"]
            edges = self._network.get_edge_data(wire.source, wire.target).values()
            op = self._nodes[wire.target[0]]
            way: Way = "feeds" if wire.source == here else "is fed by"
            if not any(edge["data"] for edge in edges):
                op, way = self._product(wire), "meets"
            rules = tuple(sorted(wire.rules))
            names = self._name(here), self._name(there)
            yield Step(*names, way, op.name, module_path(op), location(op), rules)

    def _product(self, wire: Wire) -> fx.Node:
        """The op whose operands both ends are."""
        a, b = (self._nodes[end[0]] for end in (wire.source, wire.target))
        return next((user for user in a.users if user in b.users), b)

    def _name(self, neurons: NeuronSet) -> str:
        return self._network.nodes[neurons]["tensor"] or neurons[0]
