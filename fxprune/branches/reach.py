"""Who is computed from whom, and what is left without a reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import fx

from fxprune.trace.storage import Memory, mutates, sources, targets

_SIZES = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool, torch.device)


class Flow:
    """What every node of a graph reads and who reads it, writes into memory included.

    Where a tensor is filled piece by piece (``keys[..., :n] = part``), nothing reads what the write
    returns; whoever reads the tensor afterwards reads what was written.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._sources: dict[fx.Node, list[fx.Node]] = {}
        self._users: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        self._memory: Memory | None = None
        self._into: dict[fx.Node, list[fx.Node]] = {}
        writes = {node for node in graph.nodes if not node.users and mutates(node)}
        if not writes:
            return
        memory, before = Memory(graph), defaultdict[fx.Node, list[fx.Node]](list)
        self._memory, self._into = memory, before
        for node in graph.nodes:
            found = [w for each in node.all_input_nodes for w in before[memory.root(each)]]
            for write in dict.fromkeys(found):
                self._sources.setdefault(node, []).append(write)
                self._users[write].append(node)
            if node in writes:
                for target in targets(node):
                    before[memory.root(target)].append(node)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads."""
        return [*node.all_input_nodes, *self._sources.get(node, ())]

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Who reads a node."""
        return [*node.users, *self._users.get(node, ())]

    def settled(self, value: fx.Node) -> set[fx.Node]:
        """The writes into the memory of a value, and the views that they go through.

        Whoever reads the value afterwards reads what was written, so they belong to it.
        """
        found: set[fx.Node] = set()
        if self._memory is not None:
            for write in self._into.get(self._memory.root(value), ()):
                pending = [] if write < value else [write]
                while pending:
                    node = pending.pop()
                    found.add(node)
                    views = (*targets(node), *sources(node))
                    pending.extend(view for view in views if value < view and view not in found)
        return found

    def ancestors(self, last: fx.Node) -> list[fx.Node]:
        """The node and everything it is computed from, in graph order."""
        seen = {last}
        pending = [last]
        while pending:
            for source in self.sources(pending.pop()):
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        return sorted(seen)

    def dying(
        self, last: fx.Node, users: Collection[fx.Node], entry: fx.Node, *, sizes: bool = False
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
        dead, stays = {last}, {entry, *self.settled(entry)}
        for node in reversed(self.ancestors(last)[:-1]):
            if node in stays or node.op == "placeholder":
                continue
            if (sizes and is_size(node)) or all(
                user in dead or (sizes and is_size(user)) for user in self.users(node)
            ):
                dead.add(node)
        return dead


class Reach:
    """Ancestors of every node of a graph, as bit sets: a bit per pair of nodes.

    A value does not descend from one that it takes a size or a device of alone.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.flow = Flow(graph)
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._above: list[int] = []
        for node, place in self._place.items():
            mine = 1 << place
            for source in self.flow.sources(node):
                if not is_size(source):
                    mine |= self._above[self._place[source]]
            self._above.append(mine)

    def descends(self, node: fx.Node, from_: fx.Node) -> bool:
        """Whether ``node`` is computed from ``from_``; a node descends from itself."""
        return bool(self._above[self._place[node]] >> self._place[from_] & 1)

    def between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Every node on a path from ``first``, left out, to ``last``; in graph order."""
        apart = {first, *self.flow.settled(first)}
        return [
            node
            for node in self.flow.ancestors(last)
            if node not in apart and self.descends(node, first)
        ]


def is_size(node: fx.Node) -> bool:
    """Whether the node gives a size or a device, and no values."""
    return isinstance(node.meta.get("val"), _SIZES)
