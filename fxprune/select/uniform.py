"""Uniform: all groups of a kind and size keep equally many units, each its best.

So a config that has one number for all layers can say what stays. Which kind loses how much is
decided by the scores: a step takes one step of every group of a bundle.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from fxprune.errors import SelectionError
from fxprune.select.candidates import Candidate
from fxprune.select.density import Values
from fxprune.select.limits import Limit
from fxprune.select.rank import Bundle, Steps, global_ranking


def evened(groups: Sequence[Candidate], apart: Collection[str] = ()) -> list[Candidate]:
    """The groups with the numbers of lost units that all of their kind and size may have.

    Args:
        groups: the groups.
        apart: names of those that stay as they are, whatever the others do.

    Raises:
        SelectionError: there is no such number, because of what some have lost before, say.
    """
    found = list(groups)
    for places in _alike(found, apart).values():
        levels = reduce(np.intersect1d, (found[i].levels for i in places))
        if not levels.size:
            shown = " and ".join(
                dict.fromkeys(
                    f"{found[i].name} at least {found[i].lost(0)} of {found[i].size}"
                    for i in (places[0], max(places, key=lambda i: found[i].lost(0)))
                )
            )
            raise SelectionError(
                f"{found[places[0]].kind} groups cannot keep equally many units: {shown} go"
            )
        for i in places:
            found[i] = replace(found[i], levels=levels)
    return found


def bundles(groups: Sequence[Candidate]) -> list[Bundle]:
    """The places of the groups that take their steps together: alike, and free to go as far."""
    found: dict[tuple[str, int, bytes], list[int]] = {}
    for place, group in enumerate(groups):
        key = group.kind, group.size, group.levels.tobytes()
        found.setdefault(key, []).append(place)
    return list(found.values())


def uniform_ranking(
    groups: Sequence[Candidate], limits: Sequence[Limit], density: Sequence[Values]
) -> Steps:
    """One ranking of the steps of all bundles, as :func:`fxprune.select.rank.global_ranking`."""
    return global_ranking(groups, limits, density, bundles(groups))


def level(groups: Sequence[Candidate], steps: Sequence[int]) -> Steps:
    """Each bundle as far as the one of its groups that goes least."""
    found = list(steps)
    for bundle in bundles(groups):
        least = min(steps[i] for i in bundle)
        for i in bundle:
            found[i] = least
    return found


def _alike(groups: Sequence[Candidate], apart: Collection[str]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for place, group in enumerate(groups):
        if group.name not in apart:
            found.setdefault((group.kind, group.size), []).append(place)
    return found
