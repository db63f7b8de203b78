"""The candidates of one selection, and what limited each of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxprune.errors import SelectionError
from fxprune.select.by_group import by_group, shares
from fxprune.select.candidates import (
    EXACT,
    Candidate,
    at_step,
    candidate,
    choose_groups,
    levels_of,
    settled,
    share,
)
from fxprune.select.options import at_most, check_least, check_multiple, layer_ranges

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.plan import Plan
    from fxprune.select.target import Target

# Options of a selection that say which modules and layers may lose units.
WHERE = ("keep_first", "keep_last", "ignore", "only")


@dataclass(frozen=True, eq=False)
class Pool:
    """The groups that may lose units, and those that have lost some already.

    Attributes:
        candidates: one per group.
        multiples: by name, what the number of kept units has to be a multiple of.
        least: by name, how many units stay at least.
        settled: by name, why a candidate stays as it is; "" goes without saying.
        held: by name, the limit that keeps a candidate from losing more, if that is not the least
            number or the multiple.
        protected: by name, why another group that was chosen may lose nothing.
        whole: names of the groups that are to keep units by what was asked for: a block or branch
            that holds one of them cannot go either.
    """

    candidates: list[Candidate]
    multiples: dict[str, int]
    least: dict[str, int]
    settled: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    protected: Mapping[str, str] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()

    def bounds(self) -> Counter[str]:
        """What keeps groups from losing more, but that a unit of each has to stay; how many."""
        found = Counter(self._reason(c, c.last, "") for c in self.candidates)
        found.update(self.protected.values())
        return Counter({words: n for words, n in found.items() if words not in ("", "min_kept=1")})

    def most(self) -> dict[str, int]:
        """How many units each candidate may lose, by name."""
        return {c.name: c.lost(c.last) for c in self.candidates}

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
        lost, multiple, least = group.lost(step), self.multiples[group.name], self.least[group.name]
        if step < group.last:
            return "" if lost else f"keeps all: {cause}"
        if group.name in self.held:
            return self.held[group.name]
        if lost >= group.size - least:
            return f"min_kept={least}"
        if multiple > 1 and lost > group.size - least - multiple:
            return f"multiple_of={multiple}"
        return "no more than others of its kind"


def pool_of(
    graph: DependencyGraph,
    scores: Mapping[str, Any],
    kinds: Collection[str],
    *,
    overrides: Mapping[str, float] | None = None,
    multiple_of: int | Mapping[str, int] = 1,
    min_kept: int | Mapping[str, int] = 1,
    max_ratio: float | str | Mapping[str, float | str] | None = None,
    start: Plan | None = None,
    target: Target | None = None,
    **where: Any,
) -> Pool:
    """The candidates: the chosen groups and whatever an earlier plan has pruned.

    The arguments are those of :func:`fxprune.select.select`.

    Raises:
        SelectionError: for options that are out of range or match nothing, scores that do not fit,
            overrides above ``max_ratio``, or no group that is left.
    """
    check_least(min_kept)
    check_multiple(multiple_of)
    chosen, protected = choose_groups(
        graph,
        kinds,
        names=where.get("groups"),
        layers=layer_ranges(where.get("layers")),
        **{name: where[name] for name in WHERE if name in where},
    )
    whole = set(protected)
    if target is not None:
        chosen, protected = target.open(graph, chosen, protected)
    names = {group.name: None for group in chosen}
    parts = shares(graph, overrides or {}, names)
    max_ratio = at_most(max_ratio)
    caps = by_group(graph, "max_ratio", 1.0 if max_ratio is None else max_ratio, names)
    stay = by_group(graph, "min_kept", min_kept, names)
    gone = {} if start is None else _gone(start)
    candidates, multiples = [], {}
    reasons = {name: f"override {part:g}" for name, part in parts.items()}
    held, least = {}, {}
    for group in chosen:
        given = _given(multiple_of, group.kind)
        multiple, numbers = math.lcm(given or 1, group.multiple), None
        lost, cap = gone.pop(group.name, ()), caps.get(group.name, 1.0)
        least[group.name] = max(stay.get(group.name, 1), group.least)
        at_least = max(least[group.name], group.size - math.floor(group.size * cap + EXACT))
        if target is not None:
            free = levels_of(group, len(lost), at_least, multiple)
            multiple = target.multiple(group, given)
            numbers = target.kept.get((group.kind, group.size))
            if levels_of(group, len(lost), at_least, multiple, numbers)[-1] < free[-1]:
                held[group.name] = f"{target.name}: {target.words(group, multiple)}"
        most = levels_of(group, len(lost), at_least, multiple, numbers)[-1]
        if most < levels_of(group, len(lost), least[group.name], multiple, numbers)[-1]:
            held[group.name] = f"max_ratio={cap:g}"
        multiples[group.name] = multiple
        part = parts.get(group.name)
        if part == 0:
            candidates.append(settled(group, lost))
            continue
        found = candidate(group, scores, at_least, multiple, lost, numbers)
        if (part or 0) > cap:
            raise SelectionError(
                f"the override of {group.name} takes {part:g} of its units, and max_ratio={cap:g}"
            )
        if part is not None:
            found = at_step(found, found.step_to(share(found.size, found.span, part)))
        candidates.append(found)
    for name, lost in gone.items():
        candidates.append(settled(graph[name], lost))
        reasons[name] = ""
    whole.update(name for name in names if name in parts or caps.get(name, 1.0) < 1)
    whole.update(name for name, number in stay.items() if number > 1)
    return Pool(candidates, multiples, least, reasons, held, protected, frozenset(whole))


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
