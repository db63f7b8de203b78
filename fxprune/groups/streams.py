"""Which hidden units lie between a residual stream and what is added to it."""

from __future__ import annotations

from collections.abc import Iterable, Set

from fxprune.axes import dims
from fxprune.axes.dims import Dim
from fxprune.ops.context import Link


def branch_dims(links: Iterable[Link], streams: Set[Dim], others: Set[Dim]) -> set[Dim]:
    """The dims inside residual branches: products lead from a stream to them, and on into it.

    Args:
        links: neuron flows, in graph order; those of contractions count.
        streams: the dims on which values of different origin are added.
        others: dims that no way leads through, such as those of attention heads.
    """
    closed = streams | others
    steps = [
        (set(dims.atoms(link.source_layout)), set(dims.atoms(link.target_layout)))
        for link in links
        if link.data and link.fan == "all"
    ]
    found: set[Dim] = set()
    for stream in streams:
        # When a dim is reached first, and when it is last left for the stream: a table that is
        # read at the start and at the end of a model has those the other way round.
        reached, left = {stream: -1}, {stream: len(steps)}
        for place, (sources, targets) in enumerate(steps):
            if not sources.isdisjoint(reached):
                for dim in targets - closed:
                    reached.setdefault(dim, place)
        for place, (sources, targets) in reversed(list(enumerate(steps))):
            if not targets.isdisjoint(left):
                for dim in sources - closed:
                    left.setdefault(dim, place)
        found |= {dim for dim in reached.keys() & left.keys() if reached[dim] < left[dim]} - closed
    return found
