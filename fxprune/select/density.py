"""Density: what a unit is worth for what it costs, on a scale common to all groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fxprune.select.candidates import Candidate, kept_counts
from fxprune.select.limits import Limit

Normalise = Literal["kind", "group", "standardise", "none"]
NORMALISE = ("kind", "group", "standardise", "none")
Values = NDArray[np.float64]


def unit_costs(groups: Sequence[Candidate], limits: Sequence[Limit]) -> list[float]:
    """What one unit of each group contributes to meeting the limits.

    For one limit this is the mean cost of the units that may go. For several that are short it is
    the sum of the fractions ``cost / excess``, where the excess is what has to go of that cost: a
    limit that is met already counts nothing, one that asks for much is spread over much.

    Args:
        groups: the groups, each at its first step.
        limits: the limits, at least one of which is not met yet.

    Returns:
        One number per group; 0 where a unit frees nothing that has to go or none may go.
    """
    base = kept_counts(groups, [0] * len(groups))
    excess = [limit.count.total(base) - limit.most for limit in limits]
    short = [(limit, e) for limit, e in zip(limits, excess, strict=True) if e > 0]
    costs = []
    for group in groups:
        if not group.last:
            costs.append(0.0)
            continue
        # From the second unit to go: the first may bring a bias with it, not a cost of every unit.
        here = {**base, group.dim: base[group.dim] - 1}
        # One unit alone may free nothing of a latency that falls in steps.
        more = max(group.lost(group.last) - group.lost(0) - 1, 1)
        freed = [(-limit.count.unit_cost(group.dim, here, -more) / more, e) for limit, e in short]
        # Of a single limit as it is: whole numbers keep equal densities equal.
        costs.append(sum(f / e for f, e in freed) if len(freed) > 1 else float(freed[0][0]))
    return costs


def densities(
    groups: Sequence[Candidate],
    costs: Sequence[float],
    normalise: Normalise = "kind",
    cost_aware: bool = True,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> list[Values]:
    """Density of every step of every group: the mean over the units that the step removes.

    Scores of different groups are sums over different numbers of weights and may have no common
    scale, so they are normalised:

    * ``kind``: divided by the mean absolute density of the kind over all groups. What remains is
      how a unit compares with others of its kind, and among those the dearer ones go first.
    * ``group``: divided by the mean absolute density of the group.
    * ``standardise``: per group ``(s - mean) / std`` with the unbiased deviation, as in FLAP (arXiv
      2312.11983). This and ``group`` cancel the cost, which is the same for all units of a group.
    * ``none``: left as they are.

    Args:
        groups: the groups.
        costs: cost of one unit of each group, see :func:`unit_costs`.
        normalise: how.
        cost_aware: divide the score of a unit by its cost; else the score alone counts.
        weights: factors on the densities of kinds, in the end.

    Returns:
        An array of shape (steps,) per group.
    """
    units = [
        g.scores / (cost or 1.0) if cost_aware else g.scores
        for g, cost in zip(groups, costs, strict=True)
    ]
    if normalise == "standardise":
        units = [_standardised(values) for values in units]
    elif normalise == "group":
        units = [values / _scale([values]) for values in units]
    elif normalise == "kind":
        of_kind: dict[str, list[Values]] = defaultdict(list)
        for group, values in zip(groups, units, strict=True):
            if group.last:  # groups that stay as they are do not set the scale
                of_kind[group.kind].append(values)
        scale = {kind: _scale(values) for kind, values in of_kind.items()}
        units = [v / scale.get(g.kind, 1.0) for g, v in zip(groups, units, strict=True)]
    return [
        _per_step(g, values) * weights.get(g.kind, 1.0)
        for g, values in zip(groups, units, strict=True)
    ]


def _scale(values: Sequence[Values]) -> float:
    return float(np.abs(np.concatenate(values)).mean()) or 1.0


def _standardised(values: Values) -> Values:
    deviation = values.std(ddof=1) if values.size > 1 else 0.0
    centred: Values = (values - values.mean()) / (deviation or 1.0)
    return centred


def _per_step(group: Candidate, values: Values) -> Values:
    if not group.last:
        return np.empty(0)
    # ``values`` leaves out what was lost at the start.
    edges = group.levels - (group.size - len(values))
    means: Values = np.add.reduceat(values[: edges[-1]], edges[:-1]) / np.diff(edges)
    return means
