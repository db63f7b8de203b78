"""Legality: which numbers of kept units a stock config, a device mesh or a kernel can take.

Read off the groups before anything is cut. Every row is about pruning one kind of group to the
same number of units in every layer, the rest of the model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.axes.dims import find, resolve
from fxprune.axes.positions import kept_size
from fxprune.errors import SelectionError
from fxprune.serve import stock
from fxprune.serve.engine import Engine, engine

if TYPE_CHECKING:
    from rich.table import Table

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.plan import Plan


@dataclass(frozen=True)
class Row:
    """What the groups of one kind and size may be cut to.

    Attributes:
        kind: kind of the groups.
        size: units of each.
        groups: how many groups there are.
        kept: constraint to the numbers of units that may stay, ascending, ``size`` included where
            the constraint allows it. ``stock``: a transformers config can say it (absent where the
            model has no such config). ``tp=4``: heads and neurons divide among 4 devices.
            ``x64``: every axis of a weight that the units lie on is a multiple of 64 long. The name
            of an engine: it can run them.
    """

    kind: str
    size: int
    groups: int
    kept: Mapping[str, tuple[int, ...]]

    def ratios(self, *constraints: str) -> tuple[float, ...]:
        """The fractions of units that may go under all of some constraints, ascending.

        Raises:
            SelectionError: there is no such constraint.
        """
        for name in constraints:
            if name not in self.kept:
                raise SelectionError(f"no constraint {name!r}: take {', '.join(self.kept)}")
        fits = set(range(1, self.size + 1)).intersection(*(self.kept[n] for n in constraints))
        return tuple(1 - n / self.size for n in sorted(fits, reverse=True))


@dataclass(frozen=True)
class Report:
    """What :func:`legality` gives: a row for every kind and size of group."""

    rows: tuple[Row, ...]

    def table(self) -> Table:
        """The rows for people: numbers of units that may stay."""
        from rich.table import Table

        names = list(dict.fromkeys(name for row in self.rows for name in row.kept))
        made = Table(title="units that may stay, the same in every layer")
        for column in ("kind", "groups", "units", *names):
            made.add_column(column)
        for row in self.rows:
            cells = [_words(row.kept[n], row.size) if n in row.kept else "-" for n in names]
            made.add_row(row.kind, str(row.groups), str(row.size), *cells)
        return made


def legality(
    graph: DependencyGraph,
    tensor_parallel: Sequence[int] = (2, 4, 8),
    multiples: Sequence[int] = (8, 64, 128),
    target: str | Engine | None = None,
) -> Report:
    """Which numbers of kept units are legal, kind by kind.

    Args:
        graph: the groups of the model. Sizes and layouts are read, and of a transformers config
            ``hidden_size``, ``num_attention_heads`` and whether it has a ``head_dim``.
        tensor_parallel: numbers of devices that share every layer.
        multiples: lengths of axes that kernels like.
        target: an engine, or its name, to show what it can run.

    Raises:
        SelectionError: a degree or a multiple below 1.
        ServeError: there is no such engine, or it cannot run the model whatever is removed.
    """
    for number in (*tensor_parallel, *multiples):
        if number < 1:
            raise SelectionError(f"{number} devices or a multiple of {number}: at least 1")
    alike: dict[tuple[str, int], list[Group]] = {}
    for group in graph.groups:
        alike.setdefault((group.kind, group.size), []).append(group)
    config = stock.config_of(graph)
    found = engine(target) if isinstance(target, str) else target
    bound = None if found is None else found.target(graph)
    rows = []
    for (kind, size), groups in alike.items():
        kept = {} if config is None else {"stock": stock.sizes(graph, config, groups)}
        if bound is not None:
            fits = (n for n in range(1, size + 1) if bound.allows(kind, size, n))
            kept[bound.name] = tuple(fits)
        kept |= {f"tp={n}": _parallel(graph, groups[0], n) for n in tensor_parallel}
        kept |= {f"x{n}": _multiples(groups, n) for n in multiples}
        rows.append(Row(kind, size, len(groups), kept))
    return Report(tuple(rows))


def check_plan(
    graph: DependencyGraph, plan: Plan, target: str | Engine = "transformers"
) -> list[str]:
    """Why an engine cannot run what a plan leaves.

    Args:
        graph: the groups of the model, without what the plan removes whole.
        plan: a plan for it.
        target: the engine, or its name, see :func:`fxprune.serve.engine.engines`; by default a
            stock checkpoint of transformers.

    Returns:
        One reason per line; empty if it can.

    Raises:
        PlanError: the plan is for another model.
        ServeError: there is no such engine.
    """
    plan.check(graph)
    return (engine(target) if isinstance(target, str) else target).check(plan, graph)


def _parallel(graph: DependencyGraph, group: Group, devices: int) -> tuple[int, ...]:
    """The sizes at which heads and neurons divide among devices. The stream is not divided."""
    every = tuple(range(1, group.size + 1))
    if devices == 1 or group.kind in ("channel", "head_dim"):
        return every
    if group.kind == "query":
        # Key/value heads are divided, each with whatever query heads it has. A single one cannot.
        pairs = [g for g in stock.of_layer(graph, group.layer) if g.kind == "attention"]
        return every if pairs and all(g.size % devices == 0 for g in pairs) else ()
    return every[devices - 1 :: devices]


def _multiples(groups: Sequence[Group], multiple: int) -> tuple[int, ...]:
    """The sizes at which every weight axis that the units lie on is a multiple long."""
    sites = (site for group in groups for site in group.sites if site.parameter)
    layouts = {id(layout): layout for layout in (resolve(site.layout) for site in sites)}
    found = []
    for kept in range(1, groups[0].size + 1):
        counts = {find(g.dim): kept for g in groups}
        if all(kept_size(layout, counts) % multiple == 0 for layout in layouts.values()):
            found.append(kept)
    return tuple(found)


def _words(kept: tuple[int, ...], size: int) -> str:
    """A set of numbers in a few characters."""
    if not kept:
        return "none"
    if len(kept) == size:
        return "any"
    step = kept[0]
    if len(kept) > 2 and kept == tuple(range(step, step * len(kept) + 1, step)):
        return f"multiples of {step}"
    if len(kept) > 12:
        return f"{', '.join(map(str, kept[:5]))}, ... ({len(kept)} numbers up to {kept[-1]})"
    return ", ".join(map(str, kept))
