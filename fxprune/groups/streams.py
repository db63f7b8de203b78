"""Where hidden units lie: on a residual stream, in what is added to it, or on the way to heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from fxprune.axes import dims
from fxprune.axes.dims import Dim
from fxprune.groups.kinds import MIXERS, kind_of
from fxprune.ops.context import Inferred, Link

Role = Literal["stream", "branch", "rank"]
_Steps = Sequence[tuple[Set[Dim], Set[Dim]]]


def roles(links: Iterable[Link], tags: Mapping[Dim, Set[str]]) -> dict[Dim, Role]:
    """The part that hidden units play between the layers of a model.

    Args:
        links: neuron flows, in graph order; those of contractions count.
        tags: structural facts about dims.

    Returns:
        ``stream``: the dims on which values of different origin are added, and that are inside
        no branch of another one. ``branch``: products lead from a stream to them and on into it,
        and not through heads. ``rank``: products lead from a stream to them and on to the units
        of a head, of a state or of a convolution, or to scores. Other dims have none.
    """
    steps = [
        (set(dims.atoms(link.source_layout)), set(dims.atoms(link.target_layout)))
        for link in links
        if link.data and link.fan == "all"
    ]
    heads = {dim for dim, mine in tags.items() if mine & {"inner", "outer", "batch"}}
    added = {dim for dim, mine in tags.items() if "residual" in mine and not dim.free} - heads
    within = {stream: _branch(steps, stream, heads) for stream in added}
    # A recurrence adds to what it keeps, which makes it no stream of the model. Of two that lie
    # in each other, as where layers share their weights, neither is inside.
    streams = {
        dim
        for dim in added
        if not any(dim in within[other] and other not in within[dim] for other in added)
        # One with branches of its own is a stream, if a narrower one: a U-Net has several.
        or (within[dim] and kind_of(tags[dim], 2, "branch") not in MIXERS)
    }
    inside = set().union(*(within[stream] for stream in streams)) - streams
    mixers = {dim for dim in inside if kind_of(tags.get(dim, set()), 2, "branch") in MIXERS}
    closed = streams | heads | mixers
    branch = set().union(*(_branch(steps, stream, closed) for stream in streams)) | mixers
    # Scores by distance are looked up by position, which freezes them.
    scores = {
        dim
        for _, targets in steps
        for dim in targets
        if dim.reason is not None and dim.reason.startswith("looked up by index")
    }
    ranks = _between(steps, streams | mixers, heads | mixers | scores, closed) - branch
    found: dict[Dim, Role] = dict.fromkeys(ranks, "rank")
    return found | dict.fromkeys(branch, "branch") | dict.fromkeys(streams, "stream")


def recurrent(inferred: Inferred, tags: Mapping[Dim, Set[str]]) -> set[Dim]:
    """The dims of values that hold a matrix of keys by values, as the state of a recurrence does.

    Args:
        inferred: the axes of every value.
        tags: structural facts about dims.
    """
    # A sequence is contracted as well, but no parameter has that axis.
    learned = {
        dim for axes in inferred.tensors.values() for layout in axes for dim in dims.atoms(layout)
    }
    inner, outer = (
        {dim for dim in learned if tag in tags.get(dim, ())} for tag in ("inner", "outer")
    )
    found: set[Dim] = set()
    for axes in inferred.axes.values():
        if isinstance(axes, list) or len(axes) < 2:
            continue
        atoms = [set(dims.atoms(layout)) for layout in axes]
        keys = [place for place, mine in enumerate(atoms) if mine & inner]
        values = [place for place, mine in enumerate(atoms) if mine & outer]
        if any(key != value for key in keys for value in values):
            found.update(*atoms)
    return found


def _branch(steps: _Steps, stream: Dim, closed: Set[Dim]) -> set[Dim]:
    return _between(steps, {stream}, {stream}, closed | {stream})


def _between(steps: _Steps, starts: Set[Dim], ends: Set[Dim], closed: Set[Dim]) -> set[Dim]:
    """The dims that products lead to from some and on from there to others, through none closed."""
    # When a dim is reached first, and when it is last left for the end: a table that is read at
    # the start and at the end of a model has those the other way round.
    reached, left = dict.fromkeys(starts, -1), dict.fromkeys(ends, len(steps))
    for place, (sources, targets) in enumerate(steps):
        if not sources.isdisjoint(reached):
            for dim in targets - closed:
                reached.setdefault(dim, place)
    for place, (sources, targets) in reversed(list(enumerate(steps))):
        if not targets.isdisjoint(left):
            for dim in sources - closed:
                left.setdefault(dim, place)
    return {dim for dim in reached.keys() & left.keys() if reached[dim] < left[dim]} - closed
