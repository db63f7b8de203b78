"""What several processes saw of their parts of the calibration data, as if one had seen it all."""

from __future__ import annotations

import functools
from collections import ChainMap
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from fxprune.data.processes import Processes
from fxprune.groups.group import Group
from fxprune.importance.activations import Recorder
from fxprune.importance.criterion import Criterion
from fxprune.importance.curvature import MomentRecorder, Moments
from fxprune.importance.routing import Routing
from fxprune.importance.stacked import ExpertRecorder, Experts
from fxprune.importance.statistics import Statistics, merge


def combine(
    among: Processes,
    recorder: Recorder,
    moments: MomentRecorder,
    experts: ExpertRecorder,
    routing: MutableMapping[str, Routing],
) -> None:
    """Give every process what all have seen together, in place of its own part.

    Args:
        among: the processes.
        recorder: statistics of inputs.
        moments: second moments of inputs and gradients.
        experts: both of stacked experts.
        routing: what routers did.
    """
    recorder.samples = sum(among.gather(recorder.samples))
    _merge(recorder.statistics, among)
    _sum(moments.moments, among)
    for name in _names(experts.experts, among):
        _experts(experts.experts.setdefault(name, Experts()), among)
    for name, seen in routing.items():
        sums = (among.total(each) for each in (seen.chosen, seen.added, seen.given))
        routing[name] = Routing(seen.layout, *sums)


def scored(
    among: Processes | None,
    score: Callable[[Criterion, Group], Tensor],
    criteria: Sequence[Criterion],
    groups: Sequence[Group],
) -> list[dict[str, Tensor]]:
    """The scores of groups by each criterion; each of several processes scores a part of them.

    Args:
        among: the processes, which have all found the same.
        score: of one criterion and group.
        criteria: the criteria.
        groups: the groups.
    """
    if among is None:
        return [{group.name: score(each, group) for group in groups} for each in criteria]
    own = sorted(groups, key=lambda group: group.size)[among.rank :: among.count]
    parts = among.gather([{group.name: score(each, group) for group in own} for each in criteria])
    every = [ChainMap(*of_one) for of_one in zip(*parts, strict=True)]
    return [{group.name: each[group.name] for group in groups} for each in every]


def _merge(found: MutableMapping[Any, Statistics], among: Processes) -> None:
    """Statistics by name, which are small."""
    every = among.gather({name: each.cpu() for name, each in found.items()})
    for name in sorted({name for each in every for name in each}):
        found[name] = functools.reduce(merge, [each[name] for each in every if name in each])


def _sum(found: MutableMapping[str, Moments], among: Processes) -> None:
    """Moments by name, which are as large as weights: one after the other."""
    for name in _names(found, among):
        mine = found.get(name)
        own = {} if mine is None else {"inputs": mine.inputs, "gradients": mine.gradients}
        summed = among.totals(own)
        rows = sum(among.gather(0 if mine is None else mine.rows))
        found[name] = Moments(summed["inputs"], summed["gradients"], rows)


def _experts(mine: Experts, among: Processes) -> None:
    _merge(mine.statistics, among)
    mine.inputs = among.totals(mine.inputs)
    pair = {"slopes": mine.slopes, "gradients": mine.gradients}
    summed = among.totals({name: each for name, each in pair.items() if each is not None})
    mine.slopes, mine.gradients = summed.get("slopes"), summed.get("gradients")
    mine.tokens = sum(among.gather(mine.tokens))


def _names(found: Iterable[str], among: Processes) -> list[str]:
    return sorted({name for each in among.gather(list(found)) for name in each})
