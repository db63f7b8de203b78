"""The candidates of one selection, and what limited each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxprune.select.candidates import Candidate, at_step, candidate, levels_of, settled, share
from fxprune.select.overrides import shares

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.plan import Plan
    from fxprune.select.target import Target


@dataclass(frozen=True, eq=False)
class Pool:
    """The groups that may lose units, and those that have lost some already.

    Attributes:
        candidates: one per group.
        multiples: by name, what the number of kept units has to be a multiple of.
        min_kept: units that stay in every group at least.
        settled: by name, why a candidate stays as it is; "" goes without saying.
        held: by name, the limit of an engine that keeps a candidate from losing more.
    """

    candidates: list[Candidate]
    multiples: dict[str, int]
    min_kept: int
    settled: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)

    def reasons(self, steps: Sequence[int], causes: Sequence[str]) -> dict[str, str]:
        """What limited each group, where it was not the budget alone.

        Args:
            steps: how far each candidate went.
            causes: for each candidate, why it lost nothing if it did not.
        """
        found = {
            c.name: self._reason(c, step, cause)
            for c, step, cause in zip(self.candidates, steps, causes, strict=True)
        }
        lost = any(c.lost(step) for c, step in zip(self.candidates, steps, strict=True))
        return {name: words for name, words in found.items() if words} if lost else {}

    def _reason(self, group: Candidate, step: int, cause: str) -> str:
        if group.name in self.settled:
            return self.settled[group.name]
        lost, multiple = group.lost(step), self.multiples[group.name]
        if step < group.last:
            return "" if lost else f"keeps all: {cause}"
        if group.name in self.held:
            return self.held[group.name]
        if multiple == 1 or lost >= group.size - self.min_kept:
            return f"min_kept={self.min_kept}"
        return f"multiple_of={multiple}"


def make_pool(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    chosen: Sequence[Group],
    overrides: Mapping[str, float],
    multiple_of: int | Mapping[str, int],
    min_kept: int,
    start: Plan | None,
    target: Target | None = None,
) -> Pool:
    """The candidates: the chosen groups and whatever an earlier plan has pruned.

    The arguments are those of :func:`fxprune.select.select`.

    Raises:
        SelectionError: for scores or overrides that do not fit.
    """
    parts = shares(graph, overrides, {group.name for group in chosen})
    gone = {} if start is None else _gone(start)
    candidates, multiples = [], {}
    reasons = {name: f"override {part:g}" for name, part in parts.items()}
    held = {}
    for group in chosen:
        given = _given(multiple_of, group.kind)
        multiple, numbers = math.lcm(given or 1, group.multiple), None
        lost = gone.pop(group.name, ())
        if target is not None:
            free = levels_of(group, len(lost), min_kept, multiple)
            multiple = target.multiple(group, given)
            numbers = target.kept.get((group.kind, group.size))
            if levels_of(group, len(lost), min_kept, multiple, numbers)[-1] < free[-1]:
                held[group.name] = f"{target.name}: {target.words(group, multiple)}"
        multiples[group.name] = multiple
        part = parts.get(group.name)
        if part == 0:
            candidates.append(settled(group, lost))
            continue
        found = candidate(group, scores, min_kept, multiple, lost, numbers)
        if part is not None:
            found = at_step(found, found.step_to(share(found.size, found.span, part)))
        candidates.append(found)
    for name, lost in gone.items():
        candidates.append(settled(graph[name], lost))
        reasons[name] = ""
    return Pool(candidates, multiples, min_kept, reasons, held)


def _given(multiple_of: int | Mapping[str, int], kind: str) -> int | None:
    """What was asked for; None for nothing."""
    if isinstance(multiple_of, int):
        return None if multiple_of == 1 else multiple_of
    return multiple_of.get(kind)


def _gone(plan: Plan) -> dict[str, Sequence[int]]:
    """The units that a plan removes, by name of group."""
    return {
        name: sorted(set(range(plan.sizes[name])).difference(kept))
        for name, kept in plan.kept.items()
    }
