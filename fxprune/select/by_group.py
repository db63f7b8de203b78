"""Options that say something of each group: one value for all, or a value by kind or by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from fxprune.errors import SelectionError
from fxprune.groups.kinds import KINDS
from fxprune.select.budget import check_ratio

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group

T = TypeVar("T", int, float)


def by_group(
    graph: DependencyGraph, words: str, given: T | Mapping[str, T], chosen: Collection[str]
) -> dict[str, T]:
    """The value for each group, by name; of several keys that match the last one counts.

    Args:
        graph: the groups of the model.
        words: what the option is called in messages.
        given: a value for all groups; or a kind, or an :mod:`fnmatch` pattern of a group's name, to
            the value of those.
        chosen: names of the groups that are asked about.

    Raises:
        SelectionError: a pattern matches no group of the model.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(chosen, given)
    found: dict[str, T] = {}
    for key, value in given.items():
        matches = [g.name for g in _matching(graph, words, key) if g.name in chosen]
        found.update(dict.fromkeys(matches, value))
    return found


def shares(
    graph: DependencyGraph, overrides: Mapping[str, float], chosen: Collection[str]
) -> dict[str, float]:
    """The fraction of units that goes, by name of group, as ``overrides`` has it.

    Args:
        graph: the groups of the model.
        overrides: as ``given`` of :func:`by_group`.
        chosen: names of the groups that are pruned. A pattern does not reach beyond them.

    Raises:
        SelectionError: a pattern matches no group of the model, or none that is pruned where it
            wants some pruned; or a fraction is outside [0, 1).
    """
    for key, share in overrides.items():
        check_ratio(f"override of {key!r}", share)
        matches = [group.name for group in _matching(graph, "the override", key)]
        if share > 0 and not any(name in chosen for name in matches):
            first = f"matches {matches[0]!r}, which" if matches else "is of groups that"
            verb = "is" if matches else "are"
            raise SelectionError(
                f"the override {key!r} {first} {verb} not to be pruned: it is frozen, protected "
                "or of a kind not asked for"
            )
    return by_group(graph, "the override", overrides, chosen)


def _matching(graph: DependencyGraph, words: str, key: str) -> list[Group]:
    every = [*graph.groups, *graph.frozen]
    if key in KINDS:
        return [group for group in every if group.kind == key]
    matches = [group for group in every if fnmatchcase(group.name, key)]
    if not matches:
        names = [group.name for group in every]
        close = difflib.get_close_matches(key, names, n=3, cutoff=0.3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise SelectionError(f"{words} {key!r} matches no group{hint}")
    return matches
