"""Random plans."""

from __future__ import annotations

import random

import fxprune
from tests.fuzz.subject import Captured, Spec


def random_plan(case: Captured, draw: random.Random) -> Spec:
    """Some groups, or all of them, lose 1 to 95 % of their units; branches and blocks may go."""
    removed: tuple[str, ...] = ()
    units = removable(case)
    if units and draw.random() < 0.3:
        count = draw.randint(1, max(1, len(units) // 2))
        removed = fxprune.bypass(case.traced, draw.sample(units, count)).removed
    groups = [group for group in case.groups(removed) if group.size > 1]
    if not groups:
        return Spec({}, removed)
    wanted = draw.choice((1, 2, 3, len(groups), len(groups)))
    chosen = draw.sample(groups, min(wanted, len(groups)))
    kept = {}
    for group in chosen:
        most = group.size - group.least
        if most < 1:
            continue
        loss = max(1, min(most, round(group.size * draw.uniform(0.01, 0.95))))
        kept[group.name] = tuple(sorted(draw.sample(range(group.size), group.size - loss)))
    return Spec(kept, removed)


def removable(case: Captured) -> list[str]:
    """Units of depth that the reference can switch off.

    A block must be a module that can be passed by. A branch is switched off by its parameters: it
    must have some that nothing else reads, and be nothing without them.
    """
    paths = {name for name, _ in case.model.named_modules()}
    return [
        name
        for name, unit in fxprune.find_branches(case.traced).units.items()
        if (
            unit.place.partition("@")[0] in paths
            if unit.kind == "block"
            else unit.parameters and not _passes_by(unit)
        )
    ]


def _passes_by(branch: fxprune.Unit) -> bool:
    """Whether what enters a branch also leaves it without meeting a parameter."""
    waiting = [branch.exit]
    while waiting:
        node = waiting.pop()
        if node is branch.entry:
            return True
        if not any(source.op == "get_attr" for source in node.all_input_nodes):
            waiting += node.all_input_nodes
    return False
