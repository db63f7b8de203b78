"""What one model lost that another has, from the plan of the first: ``inspect A --against B``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from fxprune.errors import PlanError
from fxprune.groups.kinds import kind_of_unit, layer_of
from fxprune.inspect.blank import Blank
from fxprune.plan import Plan
from fxprune.select.options import layer_ranges

_UNITS = {"attention": "key/value heads", "query": "query heads per key/value head"}
_UNITS |= {"mlp": "MLP units", "channel": "channels", "expert": "experts", "vocabulary": "tokens"}
Rows = list[tuple[str, ...]]


class Left(NamedTuple):
    """What is left of a group: its name, kind and layer, units that stay and that there were."""

    name: str
    kind: str
    layer: tuple[str, int] | None
    kept: int
    size: int


@dataclass(frozen=True)
class Lost:
    """What a model lost.

    Attributes:
        parameters: before and after.
        removed: names of blocks and branches that went whole.
        groups: those that lost units.
    """

    parameters: tuple[int, int]
    removed: tuple[str, ...]
    groups: tuple[Left, ...]

    def lines(self) -> Iterator[str]:
        """In words, but for the layers: parameters, kinds in all, blocks, tokens."""
        before, after = self.parameters
        share = f"{100 * (after / before - 1):+.1f} %" if before else ""
        yield f"parameters: {before:,} -> {after:,} ({share})"
        if self.removed:
            yield f"removed whole: {', '.join(self.removed)}"
        for kind in dict.fromkeys(each.kind for each in self.groups):
            of = [each for each in self.groups if each.kind == kind]
            there, left = sum(g.size for g in of), sum(g.kept for g in of)
            many = f" in {len(of)} groups" if len(of) > 1 else ""
            yield f"{_UNITS.get(kind, kind)}: {there:,} -> {left:,}{many}"
        if not (self.groups or self.removed):
            yield "nothing was lost"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "removed": list(self.removed),
            "groups": [
                {"name": g.name, "kind": g.kind, "before": g.size, "after": g.kept}
                for g in self.groups
            ],
        }


def lost(first: Blank, second: Blank) -> Lost:
    """What the second model has not that the first has.

    Args:
        first: the original of the second, or another that was pruned of the same.
        second: a folder that fxprune wrote, with its plan.

    Raises:
        PlanError: the second has no plan, or was not made of the first or of its original; or it
            has what the first lost.
    """
    plan, known = second.plan, first.plan
    if plan is None:
        raise PlanError(
            f"{second.name} holds no plan, which says what a model lost: give a folder that "
            "fxprune wrote, and the original first"
        )
    try:
        plan.check_model(first.traced.module)
    except PlanError as error:
        if known is None or known.fingerprint != plan.fingerprint:
            raise PlanError(f"{second.name} was not made of {first.name}: {error}") from error
        return _between(known, plan, first.name, second.name)
    groups = tuple(_left(name, len(units), plan.sizes[name]) for name, units in plan.kept.items())
    return Lost((plan.parameters_before, plan.parameters_after), plan.removed, groups)


def _between(one: Plan, other: Plan, first: str, second: str) -> Lost:
    """What the second of two plans for one model leaves out that the first does not."""
    found = []
    for name in dict.fromkeys((*one.kept, *other.kept)):
        size = one.sizes.get(name, other.sizes.get(name, 0))
        before, after = (set(p.kept.get(name, range(size))) for p in (one, other))
        gone = (*one.removed, *other.removed)
        if name not in other.kept and any(name.startswith(f"{n.partition(':')[0]}.") for n in gone):
            continue  # with its block
        if not after <= before:
            raise PlanError(
                f"{second} keeps units of {name} that {first} lost: it was not made of that one"
            )
        if len(after) < len(before):
            found.append(_left(name, len(after), len(before)))
    if back := set(one.removed) - set(other.removed):
        raise PlanError(f"{second} has {min(back)}, which {first} lost")
    removed = tuple(name for name in other.removed if name not in one.removed)
    return Lost((one.parameters_after, other.parameters_after), removed, tuple(found))


def _left(name: str, kept: int, size: int) -> Left:
    place, _, word = name.rpartition(":")
    return Left(name, kind_of_unit(word), layer_of(place), kept, size)


def by_layer(groups: Iterable[Left]) -> tuple[tuple[str, ...], Rows, Rows]:
    """What is left by layers, those that are alike in one row.

    Returns:
        The head of a table, its rows; and name and units of each group that is in no one layer.
    """
    layers: dict[tuple[str, int], dict[str, set[str]]] = {}
    others: Rows = []
    for group in groups:
        words = f"{group.kept:,} of {group.size:,}"
        if group.layer is None:
            others.append((group.name, words))
        else:
            layers.setdefault(group.layer, {}).setdefault(group.kind, set()).add(words)
    kinds = list(dict.fromkeys(kind for cells in layers.values() for kind in cells))
    rows: Rows = []
    for cells, run in groupby(layers.items(), key=lambda item: (item[0][0], item[1])):
        numbers = layer_ranges(number for (_, number), _ in run) or ""
        span = numbers.replace("-", " to ").replace(",", ", ")
        stays = (", ".join(sorted(cells[1].get(kind, {"-"}))) for kind in kinds)
        rows.append((f"{cells[0]} {span}", *stays))
    return ("layers", *(_UNITS.get(kind, kind) for kind in kinds)), rows, others
