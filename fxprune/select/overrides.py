"""Overrides: a fraction of units for the groups of a name pattern."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from fxprune.errors import SelectionError
from fxprune.select.budget import check_ratio

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def shares(
    graph: DependencyGraph, overrides: Mapping[str, float], chosen: Collection[str]
) -> dict[str, float]:
    """The fraction of units that goes, by name of group; of several patterns the last one counts.

    Args:
        graph: the groups of the model.
        overrides: :mod:`fnmatch` pattern of a group's name to the fraction of its units that goes.
        chosen: names of the groups that are pruned. A pattern does not reach beyond them.

    Raises:
        SelectionError: a pattern matches no group of the model, or none that is pruned where it
            wants some pruned; or a fraction is outside [0, 1).
    """
    names = [group.name for group in (*graph.groups, *graph.frozen)]
    found: dict[str, float] = {}
    for pattern, share in overrides.items():
        check_ratio(f"override of {pattern!r}", share)
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            hint = f"; close: {', '.join(close)}" if close else ""
            raise SelectionError(f"the override {pattern!r} matches no group{hint}")
        reached = [name for name in matches if name in chosen]
        if not reached and share > 0:
            raise SelectionError(
                f"the override {pattern!r} matches {matches[0]!r}, which is not to be pruned: it "
                "is frozen, protected or of a kind not asked for"
            )
        found.update(dict.fromkeys(reached, share))
    return found
