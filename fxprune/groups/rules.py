"""The dependency rules, each on its own and switchable.

R1 and R2 are LLM-Pruner's (equations 1 and 2); R3 is what a physical rewrite needs besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import networkx as nx

from fxprune.errors import GroupError
from fxprune.groups.network import NeuronSet

Neighbours = Callable[[nx.MultiDiGraph, NeuronSet], Iterator[NeuronSet]]


def in_degree_rule(network: nx.MultiDiGraph, node: NeuronSet) -> Iterator[NeuronSet]:
    """R1: a neuron fed by this one alone depends on it (LLM-Pruner, equation 1)."""
    for _, target, edge in network.out_edges(node, data=True):
        if edge["data"] and _degree(network, target, "in") == 1:
            yield target


def out_degree_rule(network: nx.MultiDiGraph, node: NeuronSet) -> Iterator[NeuronSet]:
    """R2: a neuron that feeds this one alone depends on it (LLM-Pruner, equation 2)."""
    for source, _, edge in network.in_edges(node, data=True):
        if edge["data"] and _degree(network, source, "out") == 1:
            yield source


def alignment_rule(network: nx.MultiDiGraph, node: NeuronSet) -> Iterator[NeuronSet]:
    """R3: sets joined one to one keep equal index sets, whatever their degrees."""
    for _, target, edge in network.out_edges(node, data=True):
        if edge["fan"] == "one":
            yield target
    for source, _, edge in network.in_edges(node, data=True):
        if edge["fan"] == "one":
            yield source


RULES: dict[str, Neighbours] = {
    "R1": in_degree_rule,
    "R2": out_degree_rule,
    "R3": alignment_rule,
}


def _degree(network: nx.MultiDiGraph, node: NeuronSet, side: str) -> int:
    """Degree of a single neuron among activations: weights are not neurons."""
    if side == "in":
        edges = network.in_edges(node, data=True)
        return sum(
            e["degree"] for s, _, e in edges if e["data"] and not network.nodes[s]["parameter"]
        )
    return sum(e["out_degree"] for _, _, e in network.out_edges(node, data=True) if e["data"])


def closure(
    network: nx.MultiDiGraph, start: Iterable[NeuronSet], rules: Iterable[str] = ("R1", "R2", "R3")
) -> frozenset[NeuronSet]:
    """Everything that must be pruned once ``start`` is: propagate until nothing new is found.

    The weights of a reached neuron always belong to it; dependencies run on through a weight (a
    tied one, say) only under R3.

    Raises:
        GroupError: an unknown rule or neuron set.
    """
    names = tuple(rules)
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise GroupError(f"no dependency rule {unknown[0]!r}; there are {', '.join(RULES)}")
    pending = list(start)
    for node in pending:
        if node not in network:
            raise GroupError(f"no neuron set {node!r} in the graph")
    found = set(pending)
    while pending:
        node = pending.pop()
        reached: list[NeuronSet] = []
        weight = network.nodes[node]["parameter"]
        if not weight or "R3" in names:
            for name in names:
                reached.extend(RULES[name](network, node))
        weights = alignment_rule(network, node)
        reached.extend(n for n in weights if network.nodes[n]["parameter"])
        new = set(reached) - found
        found |= new
        pending.extend(new)
    return frozenset(found)
