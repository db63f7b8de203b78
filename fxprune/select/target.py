"""What an engine can say of a pruned model: limits that bind while units are chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxprune.axes.dims import find
from fxprune.branches import find_branches
from fxprune.groups.kinds import KINDS

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.plan import Plan


@dataclass(frozen=True)
class Target:
    """The limits of an engine on plans for one model.

    Attributes:
        name: of the engine.
        kinds: kinds of groups that may lose units.
        even: whether all groups of a kind and size keep equally many.
        multiple_of: by kind, what the number of units that stay is a multiple of, in a group that
            loses some.
        kept: by kind and size of a group, the numbers of units that may stay; of what is not
            listed any.
        depth: kinds of what may go whole, see :attr:`fxprune.Unit.kind`.
        biases: whether Linears may gain a bias.
    """

    name: str
    kinds: tuple[str, ...] = KINDS
    even: bool = False
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    prefers: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[tuple[str, int], Collection[int]] = field(default_factory=dict)
    depth: tuple[str, ...] = ("block",)
    biases: bool = False

    def allows(self, kind: str, size: int, kept: int) -> bool:
        """Whether a group may keep so many units, other groups aside."""
        if kept == size:
            return True
        numbers = self.kept.get((kind, size))
        fits = kept % self.multiple_of.get(kind, 1) == 0
        return kind in self.kinds and fits and (numbers is None or kept in numbers)

    def reasons(self, graph: DependencyGraph, plan: Plan) -> list[str]:
        """Why the engine cannot say what a plan leaves, naming group, size and limit.

        Args:
            graph: the groups of the model, without the branches and blocks that the plan removes.
            plan: a plan for it.

        Returns:
            One reason a line; empty if it can.
        """
        found = [
            f"{self.name} cannot leave out {name}: it can leave out {_either(self.depth)}"
            for name in self._left_out(graph, plan)
            if name.rpartition(":")[2] not in self.depth
        ]
        counts = plan.kept_counts(graph)
        alike: dict[tuple[str, int], dict[int, str]] = {}
        for group in graph.groups:
            kept = counts.get(find(group.dim), group.size)
            alike.setdefault((group.kind, group.size), {}).setdefault(kept, group.name)
            if not self.allows(group.kind, group.size, kept):
                found.append(f"{group.name} keeps {kept} of {group.size}: {self._limit(group)}")
        for (kind, size), names in alike.items() if self.even else ():
            if len(names) > 1:
                shown = " and ".join(f"{name} keeps {kept}" for kept, name in names.items())
                found.append(f"{self.name} has one number of {kind} units of {size}: {shown}")
        if plan.biases and not self.biases:
            found.append(f"{self.name} has no place for the new bias {plan.biases[0]}")
        return found

    def _left_out(self, graph: DependencyGraph, plan: Plan) -> list[str]:
        """What a plan removes whole; a block all of whose branches go is a block that goes."""
        removed = set(plan.removed)
        if {name.rpartition(":")[2] for name in removed} <= set(self.depth):
            return list(plan.removed)
        for block in find_branches(graph.traced.original or graph.traced).of("block"):
            if removed.issuperset(block.branches):
                removed = removed.difference(block.branches) | {block.name}
        return sorted(removed)

    def _limit(self, group: Group) -> str:
        if group.kind not in self.kinds:
            return f"{self.name} takes {group.kind} groups whole"
        numbers = self.kept.get((group.kind, group.size))
        multiple = self.multiple_of.get(group.kind, 1)
        if numbers is None or multiple > 1:
            return f"{self.name} takes multiples of {multiple}"
        return f"{self.name} takes {_either(map(str, sorted(numbers))) if numbers else 'it whole'}"


def _either(words: Collection[str] | map[str]) -> str:
    words = list(words)
    return (
        ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words) or "none"
    )
