"""Where boxes stand: in layers along the data flow, ordered so that few edges cross."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import networkx as nx

Node = str | tuple[str, str, int]  # a box, or a bend of a long edge
Edge = tuple[str, str]
Point = tuple[float, float]

_SWEEPS = 4
_BETWEEN = 24.0  # pixels from box to box within a layer
_BEND = 12.0


@dataclass(frozen=True)
class Layout:
    """Boxes and edges in pixels, the flow leading right or, if not ``across``, down.

    Attributes:
        centres: of each box.
        routes: the points that each edge runs through, from the side of its tail's box.
        width: of it all.
        height: of it all.
    """

    centres: dict[str, Point]
    routes: dict[Edge, list[Point]]
    width: float
    height: float


def layout(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[Edge], *, across: bool, gap: float
) -> Layout:
    """Lay out a graph.

    Args:
        sizes: width and height of each box.
        edges: from box to box; loops lead from a box to itself.
        across: whether the flow leads from left to right rather than down.
        gap: from layer to layer.
    """
    if not sizes:
        return Layout({}, {}, 0.0, 0.0)
    extents = {box: size if across else (size[1], size[0]) for box, size in sizes.items()}
    ranks = _ranks(list(sizes), edges)
    chains = {edge: _chain(edge, ranks) for edge in edges if edge[0] != edge[1]}
    layers = _ordered(ranks, [c for c in chains.values() if c])
    along, deep, total = _along(layers, extents, gap)
    beside, breadth = _beside(layers, extents)
    centres: dict[Node, Point] = {
        node: (along[rank], beside[node]) for rank, layer in enumerate(layers) for node in layer
    }
    bends: dict[Node, list[Point]] = {
        node: [
            (along[rank] - deep[rank] / 2, beside[node]),
            (along[rank] + deep[rank] / 2, beside[node]),
        ]
        for rank, layer in enumerate(layers)
        for node in layer
        if isinstance(node, tuple)
    }  # an edge passes a layer straight, between its boxes
    routes = _routes(edges, chains, centres, extents, bends)
    turn = (lambda p: p) if across else (lambda p: (p[1], p[0]))
    return Layout(
        {box: turn(centres[box]) for box in sizes},
        {edge: [turn(point) for point in points] for edge, points in routes.items()},
        *turn((total, breadth)),
    )


def _ranks(boxes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Layers by the condensation's generations; what lies on a cycle by distance from its first."""
    graph = nx.DiGraph()
    graph.add_nodes_from(boxes)
    graph.add_edges_from(edges)
    order = {box: number for number, box in enumerate(boxes)}
    condensed = nx.condensation(graph)
    ranks: dict[str, int] = {}
    offset = 0
    for generation in nx.topological_generations(condensed):
        deepest = 0
        for component in generation:
            members = condensed.nodes[component]["members"]
            first = min(members, key=lambda box: order[box])
            for depth, layer in enumerate(nx.bfs_layers(graph.subgraph(members), first)):
                deepest = max(deepest, depth)
                ranks.update(dict.fromkeys(layer, offset + depth))
        offset += deepest + 1
    return ranks


def _chain(edge: Edge, ranks: Mapping[str, int]) -> list[Node]:
    """An edge with bends in the layers between, in the order of the layers; [] within one."""
    tail, head = sorted(edge, key=lambda box: ranks[box])
    if ranks[tail] == ranks[head]:
        return []
    return [tail, *((*edge, rank) for rank in range(ranks[tail] + 1, ranks[head])), head]


def _ordered(ranks: Mapping[str, int], chains: Sequence[Sequence[Node]]) -> list[list[Node]]:
    """The nodes of each layer, after sweeps that put each near the mean of its neighbours."""
    layers: list[list[Node]] = [[] for _ in range(max(ranks.values(), default=-1) + 1)]
    for box, rank in ranks.items():
        layers[rank].append(box)
    near: dict[Node, list[Node]] = {}
    for chain in chains:
        start = ranks[str(chain[0])]
        for number, node in enumerate(chain):
            if isinstance(node, tuple):
                layers[start + number].append(node)
            near.setdefault(node, []).extend(chain[max(0, number - 1) : number])
            near[node].extend(chain[number + 1 : number + 2])
    place = {node: float(i) for layer in layers for i, node in enumerate(layer)}
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wish = {n: mean([place[x] for x in near.get(n, [n])]) for n in layer}
            layer.sort(key=lambda node, wish=wish: wish[node])  # type: ignore[misc]
            # Layers of different lengths are compared by their middles.
            place |= {node: i - (len(layer) - 1) / 2 for i, node in enumerate(layer)}
    return layers


def _along(
    layers: Sequence[Sequence[Node]], extents: Mapping[str, tuple[float, float]], gap: float
) -> tuple[list[float], list[float], float]:
    """Along the flow, the middle of each layer, its depth, and the end of the last."""
    deep = [max(extents[node][0] for node in layer if isinstance(node, str)) for layer in layers]
    starts = [sum(deep[:rank]) + gap * rank for rank in range(len(layers))]
    middles = [start + depth / 2 for start, depth in zip(starts, deep, strict=True)]
    return middles, deep, starts[-1] + deep[-1]


def _beside(
    layers: Sequence[Sequence[Node]], extents: Mapping[str, tuple[float, float]]
) -> tuple[dict[Node, float], float]:
    def broad(node: Node) -> float:
        return extents[node][1] if isinstance(node, str) else _BEND

    wide = [sum(map(broad, layer)) + _BETWEEN * (len(layer) - 1) for layer in layers]
    breadth = max(wide, default=0.0)
    found: dict[Node, float] = {}
    for layer, mine in zip(layers, wide, strict=True):
        edge = (breadth - mine) / 2
        for node in layer:
            found[node] = edge + broad(node) / 2
            edge += broad(node) + _BETWEEN
    return found, breadth


def _routes(
    edges: Sequence[Edge],
    chains: Mapping[Edge, list[Node]],
    centres: Mapping[Node, Point],
    extents: Mapping[str, tuple[float, float]],
    bends: Mapping[Node, list[Point]],
) -> dict[Edge, list[Point]]:
    """Points of each edge; at a box they are spread over its side in the order of the far ends."""
    sides: dict[tuple[str, int], list[tuple[float, Edge]]] = {}
    for edge in edges:
        chain = chains.get(edge, [])
        ends = ((chain[0], 1, chain[1]), (chain[-1], -1, chain[-2])) if chain else ()
        for box, side, far in ends:
            sides.setdefault((str(box), side), []).append((centres[far][1], edge))
        if not chain:  # within a layer: out and back on the far side
            for box, far in (edge, edge[::-1]):
                sides.setdefault((box, 1), []).append((centres[far][1], edge))
    ports: dict[tuple[str, int, Edge], list[Point]] = {}
    for (box, side), used in sides.items():
        (x, y), (deep, broad) = centres[box], extents[box]
        for number, (_, edge) in enumerate(sorted(used, key=lambda pair: pair[0])):
            shift = broad * ((number + 1) / (len(used) + 1) - 0.5)
            ports.setdefault((box, side, edge), []).append((x + side * deep / 2, y + shift))
    routes: dict[Edge, list[Point]] = {}
    for edge in edges:
        chain = chains.get(edge, [])
        if not chain:
            tail, head = (ports[box, 1, edge] for box in edge)
            points = [tail[0], head[-1]]
        else:
            between = [point for node in chain[1:-1] for point in bends[node]]
            first, last = str(chain[0]), str(chain[-1])
            points = [*ports[first, 1, edge], *between, *ports[last, -1, edge]]
        routes[edge] = points if not chain or chain[0] == edge[0] else points[::-1]
    return routes
