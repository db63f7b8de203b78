"""Legality: which numbers of kept units a stock config, a device mesh or a kernel can take.

Read off the groups before anything is cut. Every row is about pruning one kind of group to the
same number of units in every layer, the rest of the model as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxprune.axes.dims import Dim, find, resolve
from fxprune.axes.positions import kept_size
from fxprune.errors import SelectionError

if TYPE_CHECKING:
    from rich.table import Table

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group
    from fxprune.plan import Plan

# Kinds of which a transformers config holds the size, where it is the same in every layer.
_IN_CONFIG = ("mlp", "attention", "query", "head_dim", "channel")


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
            ``x64``: every axis of a weight that the units lie on is a multiple of 64 long.
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
) -> Report:
    """Which numbers of kept units are legal, kind by kind.

    Args:
        graph: the groups of the model. Sizes and layouts are read, and of a transformers config
            ``hidden_size``, ``num_attention_heads`` and whether it has a ``head_dim``.
        tensor_parallel: numbers of devices that share every layer.
        multiples: lengths of axes that kernels like.

    Raises:
        SelectionError: a degree or a multiple below 1.
    """
    for number in (*tensor_parallel, *multiples):
        if number < 1:
            raise SelectionError(f"{number} devices or a multiple of {number}: at least 1")
    alike: dict[tuple[str, int], list[Group]] = {}
    for group in graph.groups:
        alike.setdefault((group.kind, group.size), []).append(group)
    config = _config(graph)
    rows = []
    for (kind, size), groups in alike.items():
        kept = {} if config is None else {"stock": _stock(graph, config, groups)}
        kept |= {f"tp={n}": _parallel(graph, groups[0], n) for n in tensor_parallel}
        kept |= {f"x{n}": _multiples(groups, n) for n in multiples}
        rows.append(Row(kind, size, len(groups), kept))
    return Report(tuple(rows))


def check_plan(graph: DependencyGraph, plan: Plan) -> list[str]:
    """Why no stock config can say what a plan leaves.

    Args:
        graph: the groups of the model.
        plan: a plan for it.

    Returns:
        One reason per line; empty if the model stays stock.

    Raises:
        PlanError: the plan is for another model.
    """
    plan.check(graph)
    counts = plan.kept_counts(graph)
    found: list[str] = []
    of_kind: dict[str, list[Group]] = {}
    for group in (*graph.groups, *graph.frozen):
        of_kind.setdefault(group.kind, []).append(group)
    for kind, groups in of_kind.items():
        if not any(g.name in plan.kept for g in groups):
            continue
        sizes = {(g.size, counts.get(find(g.dim), g.size)): g.name for g in reversed(groups)}
        if len(sizes) > 1:
            shown = [f"{name} keeps {kept} of {size}" for (size, kept), name in sizes.items()]
            found.append(f"{kind} groups of different sizes: {', '.join(shown[-3:][::-1])}")
        elif kind not in _IN_CONFIG:
            found.append(f"no config holds the number of units of {groups[0].name} ({kind})")
    if plan.biases:
        found.append(f"{len(plan.biases)} Linears gain a bias, {plan.biases[0]} first")
    config = _config(graph)
    if config is None:
        found.append("the model has no transformers config")
    else:
        heads = dict.fromkeys(_heads(graph, layer, counts) for layer in _attention(graph))
        hidden = _hidden(graph, config, counts)
        found += [reason for n in heads for reason in _refused(config, n, hidden)]
    return found


def _stock(graph: DependencyGraph, config: Any, groups: Sequence[Group]) -> tuple[int, ...]:
    """The sizes that a config can say, all of these groups alike."""
    kind, size = groups[0].kind, groups[0].size
    # A config has one number for the kind, so it must be all groups of the kind that are cut.
    every = sum(g.kind == kind for g in (*graph.groups, *graph.frozen))
    if kind not in _IN_CONFIG or every > len(groups):
        return (size,)
    if kind == "mlp":
        return tuple(range(1, size + 1))
    if kind == "head_dim":
        return tuple(range(1, size + 1)) if _has_head_dim(config) else (size,)
    layers = _attention(graph)
    heads = {_heads(graph, layer, {}) for layer in layers} or {int(config.num_attention_heads)}
    found = []
    for kept in range(1, size):
        counts = {find(g.dim): kept for g in groups}
        if kind != "channel":
            heads = {_heads(graph, layer, counts) for layer in layers}
        hidden = _hidden(graph, config, counts)
        if not any(_refused(config, n, hidden) for n in heads):
            found.append(kept)
    return (*found, size)


def _parallel(graph: DependencyGraph, group: Group, devices: int) -> tuple[int, ...]:
    """The sizes at which heads and neurons divide among devices. The stream is not divided."""
    every = tuple(range(1, group.size + 1))
    if devices == 1 or group.kind in ("channel", "head_dim"):
        return every
    if group.kind == "query":
        # Key/value heads are divided, each with whatever query heads it has. A single one cannot.
        pairs = [g for g in _of_layer(graph, group.layer) if g.kind == "attention"]
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


def _refused(config: Any, heads: int, hidden: int) -> list[str]:
    """Why a config of so many query heads and channels is refused."""
    found = []
    if hidden % heads:
        found.append(
            f"{heads} query heads do not divide hidden_size {hidden}, which configs insist on"
        )
    changed = (heads, hidden) != (int(config.num_attention_heads), int(config.hidden_size))
    if changed and not _has_head_dim(config):
        found.append(
            f"the config has no head_dim, so {heads} heads of {hidden} channels change their size"
        )
    return found


def _config(graph: DependencyGraph) -> Any:
    config: Any = getattr(graph.traced.module, "config", None)
    if getattr(config, "is_heterogeneous", False):  # what differs cannot be read off it
        config = copy.deepcopy(config)
        config.per_layer_config = None
    sizes = [getattr(config, name, None) for name in ("hidden_size", "num_attention_heads")]
    return config if all(isinstance(size, int) for size in sizes) else None


def _has_head_dim(config: Any) -> bool:
    return getattr(config, "head_dim", None) is not None


def _hidden(graph: DependencyGraph, config: Any, counts: Mapping[Dim, int]) -> int:
    """Channels of the residual stream that stay: those of the group that is as wide as it."""
    for group in graph.groups:
        if group.kind == "channel" and group.size == config.hidden_size:
            return counts.get(find(group.dim), group.size)
    return int(config.hidden_size)


def _attention(graph: DependencyGraph) -> list[tuple[str, int] | None]:
    """The layers that have heads."""
    found = (g for g in (*graph.groups, *graph.frozen) if g.kind in ("attention", "query"))
    return list(dict.fromkeys(group.layer for group in found))


def _heads(graph: DependencyGraph, layer: tuple[str, int] | None, counts: Mapping[Dim, int]) -> int:
    """Query heads of a layer that stay: key/value heads times query heads of each."""
    heads = 1
    for group in _of_layer(graph, layer):
        if group.kind in ("attention", "query"):
            heads *= counts.get(find(group.dim), group.size)
    return heads


def _of_layer(graph: DependencyGraph, layer: tuple[str, int] | None) -> Iterable[Group]:
    return (group for group in (*graph.groups, *graph.frozen) if group.layer == layer)


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
