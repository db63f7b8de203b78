"""What ``fxprune inspect`` shows: the groups of a model, few lines however many layers it has."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.branches import find_branches
from fxprune.files import write_text
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.inspect.drawing.cards import carried
from fxprune.measure.report import resized, scaled, shape_words

if TYPE_CHECKING:
    from rich.table import Table

    from fxprune.branches import Branches
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.inspect.legality import Report

COUNTED_AT = (1, 64)  # rows and tokens of the MACs that are shown
_NUMBER = re.compile(r"(?<=[.])\d+(?=[.:]|$)|#\d+$")


@dataclass(frozen=True)
class Row:
    """Groups that differ in nothing but the layer they are in.

    Attributes:
        name: their name, with ``*`` for the number of the layer.
        kind: their kind.
        sizes: the units of a group, each size once, ascending.
        count: how many groups.
        parameters: numbers that would go with all their units, summed.
        reason: why they are frozen; None for groups that can be pruned.
    """

    name: str
    kind: str
    sizes: tuple[int, ...]
    count: int
    parameters: int
    reason: str | None


def rows(graph: DependencyGraph, groups: Iterable[Group], *, each: bool = False) -> list[Row]:
    """Summarise groups, largest share of the parameters first and frozen ones after the others.

    Args:
        graph: the graph they are of.
        groups: which ones.
        each: one row per group, in the model's order.
    """
    if each:
        return [Row(g.name, g.kind, (g.size,), 1, carried(graph, g), g.reason) for g in groups]
    alike: dict[tuple[str, str, str | None], list[Group]] = {}
    seen: dict[tuple[str, ...], int] = {}
    for group in groups:
        # Several on the same tensors, as groups of experts and the experts of each, are told apart.
        shared = (*group.parameters[:1], group.name.partition("#")[0])
        seen[shared] = seen.get(shared, 0) + 1
        name = _NUMBER.sub(lambda m: "" if m[0].startswith("#") else "*", group.name)
        if seen[shared] > 1:
            name += f"#{seen[shared]}"
        alike.setdefault((name, group.kind, group.reason), []).append(group)
    made = [
        Row(
            name,
            kind,
            tuple(sorted({g.size for g in members})),
            len(members),
            sum(carried(graph, g) for g in members),
            reason,
        )
        for (name, kind, reason), members in alike.items()
    ]
    return sorted(made, key=lambda row: (row.reason is not None, -row.parameters))


def by_kind(graph: DependencyGraph) -> dict[str, int]:
    """How many prunable groups there are of each kind, the most frequent first."""
    counts: dict[str, int] = {}
    for group in graph.groups:
        counts[group.kind] = counts.get(group.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def facts(graph: DependencyGraph) -> dict[str, Any]:
    """What a model costs as plain values: those of :func:`fxprune.costs.facts`, and the input.

    ``macs_input`` is what the MACs are for, in words.
    """
    from fxprune import costs as costs_of

    inputs = resized((graph.traced.args, graph.traced.kwargs), *COUNTED_AT)
    return {**costs_of.facts(graph), "macs_input": shape_words(inputs)}


def costs(facts: Mapping[str, Any]) -> list[str]:
    """What a model costs, in two lines; what could not be counted is left out.

    Args:
        facts: see :func:`facts`.
    """
    parts = [f"{facts['parameters']:,} parameters", half(facts) + " in fp16"]
    if facts["active"] != facts["parameters"]:  # it has experts
        parts.insert(1, f"{facts['active']:,} of them active for a token")
    if facts["kv_cache"]:  # 0: it is not a decoder
        parts.append(f"{facts['kv_cache']:,} numbers cached per token")
    lines = [", ".join(parts)]
    if facts["macs"] is not None:
        lines.append(f"{scaled(facts['macs'])}MACs for {facts['macs_input']}")
    return lines


def half(facts: Mapping[str, Any]) -> str:
    """The weights in two bytes a number."""
    return f"{2 * facts['parameters'] / 2**20:,.1f} MiB"


def defaults(graph: DependencyGraph) -> list[str]:
    """What is pruned where nothing else is said, and what is not; no line where that is all."""
    counts = by_kind(graph)
    left = {kind: n for kind, n in counts.items() if kind not in DEFAULT_KINDS}
    if not left:
        return []
    taken = ", ".join(kind for kind in DEFAULT_KINDS if kind in counts) or "nothing"
    others = ", ".join(f"{count} {kind}" for kind, count in left.items())
    return [f"pruned by default: {taken}; only with kinds=: {others}"]


def depth(branches: Branches) -> list[str]:
    """What can go whole, and what cannot and why; no lines for a model without residual sums."""
    counts = Counter(unit.kind for unit in branches.units.values())
    parts = [f"{counts[kind]} {kind}" for kind in ("block", "attention", "mlp", "other")]
    shown = ", ".join(part for part in parts if not part.startswith("0 "))
    lines = [f"depth, removable whole: {shown}"] if shown else []
    alike: dict[str, list[str]] = {}
    for name, reason in branches.refused.items():
        alike.setdefault(_NUMBER.sub("*", name), []).append(f"{name}: {reason}")
    for reasons in alike.values():
        more = f" (and {len(reasons) - 1} alike)" if len(reasons) > 1 else ""
        lines.append(f"not {reasons[0]}{more}")
    return lines


def tables(shown: Iterable[Row], total: int) -> list[Table]:
    """Tables of prunable and of frozen groups (those that have rows).

    Args:
        shown: rows of both sorts.
        total: parameters of the model, to show shares of.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = list(shown)
    many = any(row.count > 1 for row in shown)
    made = []
    for title, last in (("can be pruned", "parameters"), ("frozen", "reason")):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("kind", no_wrap=True)
        if many:
            table.add_column("groups", justify="right", no_wrap=True)
        table.add_column("units", justify="right", no_wrap=True)
        table.add_column("where", overflow="fold")
        numeric = last == "parameters"
        table.add_column(last, justify="right" if numeric else "left", no_wrap=numeric)
        for row in shown:
            if numeric == (row.reason is None):
                share = f" {100 * row.parameters / total:5.1f} %" if total else ""
                cell = escape(row.reason) if row.reason else scaled(row.parameters) + share
                counted = (str(row.count),) if many else ()
                table.add_row(row.kind, *counted, _span(row.sizes), escape(row.name), cell)
        made.append(table)
    return [table for table in made if table.row_count]


def as_json(graph: DependencyGraph, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about every group as plain values, after the facts given about the model."""
    branches = find_branches(graph.traced)
    return {
        **facts,
        "kinds": by_kind(graph),
        "groups": [_plain(graph, g) for g in graph.groups],
        "frozen": [{**_plain(graph, g), "reason": g.reason} for g in graph.frozen],
        "branches": [
            {"name": unit.name, "kind": unit.kind, "parameters": list(unit.parameters)}
            for unit in branches.units.values()
        ],
        "refused": branches.refused,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as a file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def plain_sizes(report: Report) -> list[dict[str, Any]]:
    """The rows of :func:`fxprune.legality` as plain values; numbers of units as ``"1-4,8"``."""
    return [
        {
            "kind": row.kind,
            "size": row.size,
            "groups": row.groups,
            "kept": {name: _ranges(kept) for name, kept in row.kept.items()},
        }
        for row in report.rows
    ]


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers as text."""
    # In a run of consecutive numbers the difference from their place is the same.
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _plain(graph: DependencyGraph, group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind,
        "size": group.size,
        "layer": list(group.layer) if group.layer else None,
        "parameters": carried(graph, group),
        "sites": [{"tensor": site.tensor, "axis": site.axis} for site in group.sites],
    }


def _span(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
