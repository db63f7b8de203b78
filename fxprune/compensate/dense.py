"""The dense model: where it has what a graph with holes in its stream should have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from fxprune.branches.bypass import stands_for
from fxprune.branches.reach import is_size
from fxprune.trace.traced import Traced


@dataclass(frozen=True, eq=False)
class Dense:
    """The model that gives the targets.

    Attributes:
        traced: the model, all residual branches and blocks included.
        places: of each node of the graph without some, the nodes of this one that it stands for.
    """

    traced: Traced
    places: Mapping[fx.Node, tuple[fx.Node, ...]]

    @classmethod
    def of(cls, traced: Traced, *, whole: bool) -> Dense:
        """The dense model of a graph that may lack branches and blocks.

        Args:
            traced: the graph.
            whole: take the original with those, not the graph itself.
        """
        if whole and traced.original is not None:
            return cls(traced.original, stands_for(traced))
        return cls(traced, {node: (node,) for node in traced.graph_module.graph.nodes})

    def node(self, node: fx.Node) -> fx.Node:
        """The same node in the dense model."""
        return self.places[node][0]

    def aim(self, node: fx.Node, before: fx.Node | None = None) -> fx.Node:
        """What a value should come to be: what all that read it read in the dense model.

        Before a hole that is the value behind it. It is the same value as here where readers
        differ, as those of a parallel branch or of a skip connection across the hole do, and where
        the other comes no earlier than a node, ``before``.
        """
        own, *behind = values = self.places[node]
        readers = [self.places[user] for user in node.users if not is_size(user)]
        for value in reversed(behind):
            if before is not None and not value < before:
                continue
            if all(value in each or _reads(each[0], values) == {value} for each in readers):
                return value
        return own


def _reads(reader: fx.Node, values: tuple[fx.Node, ...]) -> set[fx.Node]:
    return set(values).intersection(reader.all_input_nodes)
