"""Edges of the neuron graph: which rules they follow, and which boxes they join."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import networkx as nx

from fxprune.groups import rules
from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.style import line_of


@dataclass(frozen=True)
class Wire:
    """An edge between two neuron sets.

    Attributes:
        source: the neuron set it leaves.
        target: the neuron set it enters.
        rules: names of the dependency rules it follows.
        line: a key of :data:`fxprune.inspect.drawing.style.LINES`.
    """

    source: NeuronSet
    target: NeuronSet
    rules: frozenset[str]
    line: str


def wires(network: nx.MultiDiGraph, focus: Collection[NeuronSet]) -> list[Wire]:
    """Every edge that touches a focused neuron set, parallel ones taken together."""
    ends = {
        (source, target): None
        for node in focus
        for source, target in (*network.in_edges(node), *network.out_edges(node))
    }
    following = _Following(network)
    return [following.wire(source, target) for source, target in ends]


class _Following:
    """Asks each rule once per neuron set whom it reaches."""

    def __init__(self, network: nx.MultiDiGraph) -> None:
        self._network = network
        self._known: dict[tuple[str, NeuronSet], frozenset[NeuronSet]] = {}

    def wire(self, source: NeuronSet, target: NeuronSet) -> Wire:
        nodes = self._network.nodes
        parameter = nodes[source]["parameter"] or nodes[target]["parameter"]
        # R1 looks downstream and R2 upstream; R3 looks both ways.
        looks = (("R1", source, target), ("R2", target, source), ("R3", source, target))
        held = frozenset(rule for rule, here, there in looks if there in self._reach(rule, here))
        if parameter:
            held &= {"R3"}  # weights are not neurons: they come along, see rules.closure
        return Wire(source, target, held, line_of(held, parameter=bool(parameter and held)))

    def _reach(self, rule: str, node: NeuronSet) -> frozenset[NeuronSet]:
        if (rule, node) not in self._known:
            reached = frozenset(rules.RULES[rule](self._network, node))
            self._known[rule, node] = reached
        return self._known[rule, node]


End = tuple[str, str | None]  # a node of the picture, and a port of it


def joined(
    found: Iterable[Wire], end: Callable[[NeuronSet], End | None]
) -> dict[tuple[End, End, str], frozenset[str]]:
    """Wires as edges of the picture: (tail, head, line) to the rules, each once.

    Flows from all to all between the same two boxes become one edge, without ports where several
    cells take part.

    Args:
        found: the wires.
        end: where a neuron set is drawn (None: nowhere).
    """
    edges: dict[tuple[End, End, str], frozenset[str]] = {}
    flows: dict[tuple[str, str], list[tuple[End, End]]] = {}
    for wire in found:
        tail, head = end(wire.source), end(wire.target)
        if tail is None or head is None or tail[0] == head[0]:
            continue
        if wire.line == "all":
            flows.setdefault((tail[0], head[0]), []).append((tail, head))
        else:
            key = (tail, head, wire.line)
            edges[key] = edges.get(key, frozenset()) | wire.rules
    return edges | _flows(flows)


def _flows(
    flows: Mapping[tuple[str, str], list[tuple[End, End]]],
) -> dict[tuple[End, End, str], frozenset[str]]:
    edges: dict[tuple[End, End, str], frozenset[str]] = {}
    for (tail, head), pairs in flows.items():
        ports = [{ports[side][1] for ports in pairs} for side in (0, 1)]
        out, into = (next(iter(p)) if len(p) == 1 else None for p in ports)
        edges[(tail, out), (head, into), "all"] = frozenset()
    return edges
