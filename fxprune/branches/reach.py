"""Who is computed from whom, and what is left without a reader."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

_SIZES = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool, torch.device)


class Reach:
    """Ancestors of every node of a graph, as bit sets: a bit per pair of nodes.

    A value does not descend from one that it takes a size or a device of alone.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._above: list[int] = []
        for node, place in self._place.items():
            mine = 1 << place
            for source in node.all_input_nodes:
                if not is_size(source):
                    mine |= self._above[self._place[source]]
            self._above.append(mine)

    def descends(self, node: fx.Node, from_: fx.Node) -> bool:
        """Whether ``node`` is computed from ``from_``; a node descends from itself."""
        return bool(self._above[self._place[node]] >> self._place[from_] & 1)

    def between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Every node on a path from ``first``, left out, to ``last``; in graph order."""
        return [
            node for node in ancestors(last) if node is not first and self.descends(node, first)
        ]


def is_size(node: fx.Node) -> bool:
    """Whether the node gives a size or a device, and no values."""
    return isinstance(node.meta.get("val"), _SIZES)


def ancestors(last: fx.Node) -> list[fx.Node]:
    """The node and everything it is computed from, in graph order."""
    seen = {last}
    pending = [last]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return sorted(seen)


def dying(
    last: fx.Node, users: Collection[fx.Node], entry: fx.Node, *, sizes: bool = False
) -> set[fx.Node]:
    """What nobody reads any more once ``users`` read ``entry`` instead of ``last``.

    Empty if ``last`` has other users.

    Args:
        last: the last node of a part.
        users: those of its users that will not read it.
        entry: what they read instead.
        sizes: include what is read for its size alone, and the size; that value may stay.
    """
    if any(user not in users for user in last.users):
        return set()
    dead = {last}
    for node in reversed(ancestors(last)[:-1]):
        if node is entry or node.op == "placeholder":
            continue
        if (sizes and is_size(node)) or all(
            user in dead or (sizes and is_size(user)) for user in node.users
        ):
            dead.add(node)
    return dead
