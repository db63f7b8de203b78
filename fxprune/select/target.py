"""What an engine can say of a pruned model: limits that bind while units are chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxprune.axes.dims import find
from fxprune.branches import find_branches
from fxprune.branches.unit import kind_of
from fxprune.errors import SelectionError, ServeError
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
        prefers: likewise, where nothing else is asked for and the size of the group is one; it runs
            others too.
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
            if kind_of(name) not in self.depth
        ]
        counts = plan.kept_counts(graph)
        alike: dict[tuple[str, int], dict[int, str]] = {}
        for group in graph.groups:
            kept = counts.get(find(group.dim), group.size)
            alike.setdefault((group.kind, group.size), {}).setdefault(kept, group.name)
            if not self.allows(group.kind, group.size, kept):
                words = f"{self.name} takes {self.words(group)}"
                found.append(f"{group.name} keeps {kept} of {group.size}: {words}")
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
        if set(map(kind_of, removed)) <= set(self.depth):
            return list(plan.removed)
        for block in find_branches(graph.traced.original or graph.traced).of("block"):
            if removed.issuperset(block.branches):
                removed = removed.difference(block.branches) | {block.name}
        return sorted(removed)

    def open(
        self, graph: DependencyGraph, chosen: Sequence[Group], protected: Mapping[str, str]
    ) -> tuple[list[Group], dict[str, str]]:
        """The groups that may lose units, of those that were chosen.

        Args:
            graph: the groups of the model.
            chosen: those that may lose some but for the engine.
            protected: why others may not, by name.

        Returns:
            The groups; and why others may not, by name.

        Raises:
            SelectionError: none is left.
        """
        free = {group.name for group in chosen}
        whole: dict[tuple[str, int], str] = {}
        for group in (*graph.groups, *graph.frozen) if self.even else ():
            if group.name not in free:
                why = protected.get(group.name, "frozen" if group.reason else "not chosen")
                whole.setdefault((group.kind, group.size), f"as whole as {group.name} ({why})")
        found, held = [], dict(protected)
        for group in chosen:
            if group.kind not in self.kinds:
                held[group.name] = f"{self.name}: {self.words(group)}"
            elif (group.kind, group.size) in whole:
                held[group.name] = f"{self.name}: {whole[group.kind, group.size]}"
            else:
                found.append(group)
        if not found:
            why = held[chosen[0].name].removeprefix(f"{self.name}: ")
            raise SelectionError(
                f"nothing is left to prune for {self.name}, which takes {chosen[0].name} {why}; "
                f"units may go of {_either(self.kinds)}"
            )
        return found, held

    def check_depth(self, unit: str) -> None:
        """Refuse what cannot go whole.

        Args:
            unit: as of :class:`fxprune.Depth`.

        Raises:
            ServeError: some of it cannot.
        """
        units = ("attention", "mlp") if unit == "branch" else (unit,)
        if missing := [each for each in units if each not in self.depth]:
            raise ServeError(
                f"{self.name} cannot leave out {missing[0]}: it can leave out {_either(self.depth)}"
            )

    def multiple(self, group: Group, given: int | None) -> int:
        """What the number of units that stay of a group is a multiple of.

        Args:
            group: the group.
            given: what the user asked for, if that is anything.
        """
        least = self.multiple_of.get(group.kind, 1)
        preferred = self.prefers.get(group.kind, 1)
        if given is None:
            given = preferred if group.size % preferred == 0 else 1
        return math.lcm(given, least, group.multiple)

    def words(self, group: Group, multiple: int = 1) -> str:
        """What numbers of units of a group may stay, such as ``multiples of 256``.

        Args:
            group: the group.
            multiple: what they are a multiple of, if not what the engine insists on.
        """
        multiple = max(multiple, self.multiple_of.get(group.kind, 1))
        numbers = self.kept.get((group.kind, group.size))
        if group.kind not in self.kinds:
            return f"{group.kind} groups whole"
        if numbers is None:
            return f"multiples of {multiple}"
        if {*numbers} <= {group.size}:
            return "it whole"
        shown = [*map(str, sorted(numbers))]
        listed = _either(shown) if len(shown) < 9 else f"{', '.join(shown[:4])}, ... or {shown[-1]}"
        return listed + (f", multiples of {multiple}" if multiple > 1 else "")


def _either(given: Collection[str]) -> str:
    words = list(given)
    return (
        ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words) or "none"
    )
