"""The dependency graph: groups, frozen groups, triggers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxprune.axes import dims
from fxprune.axes.dims import Dim, Layout
from fxprune.errors import GroupError
from fxprune.groups import kinds, rules
from fxprune.groups.group import Group, Site
from fxprune.groups.infer import infer
from fxprune.groups.network import NeuronSet, build
from fxprune.groups.streams import recurrent, roles
from fxprune.ops.choosing import least_of
from fxprune.ops.context import Inferred
from fxprune.trace.traced import Traced

if TYPE_CHECKING:
    import networkx as nx

    from fxprune.inspect.explanation import Explanation

_ALIGNED = 8  # units of two bytes in 16
_FREE = "a symbolic size (batch or sequence)"


class DependencyGraph:
    """Every group of a traced model.

    Attributes:
        traced: the model.
        inferred: axes of every value.
        groups: the groups that can be pruned, in the model's order.
        frozen: those that cannot, each with its ``reason``.
        layouts: canonical FQN of every tensor to the layout of each axis.
    """

    def __init__(self, traced: Traced, inferred: Inferred) -> None:
        self.traced = traced
        self.inferred = inferred
        self.layouts = {name: inferred.tensors[name] for name in traced.tensors}
        every = _collect(traced, inferred)
        self.groups = tuple(g for g in every if g.reason is None)
        self.frozen = tuple(g for g in every if g.reason is not None)
        self._by_name = {g.name: g for g in every}

    def __getitem__(self, name: str) -> Group:
        """The group of that name, frozen ones included.

        Raises:
            GroupError: there is none; the message offers close names.
        """
        if name not in self._by_name:
            close = difflib.get_close_matches(name, self._by_name, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise GroupError(f"no group {name!r}{hint}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def network(self) -> nx.MultiDiGraph:
        """The neuron graph, see :func:`fxprune.groups.network.build`."""
        return build(self.traced, self.inferred, (*self.groups, *self.frozen))

    def neurons(self, tensor: str, axis: int) -> tuple[NeuronSet, ...]:
        """The neuron sets that one axis of a parameter or buffer holds.

        Raises:
            GroupError: no such tensor or axis.
        """
        name = self.traced.canonical(tensor)
        if name not in self.layouts or not -len(self.layouts[name]) <= axis < len(
            self.layouts[name]
        ):
            raise GroupError(f"the graph reads no tensor {tensor!r} with an axis {axis}")
        node = next(
            n
            for n in self.traced.graph_module.graph.nodes
            if n.op == "get_attr" and n.target == name
        )
        here = set(dims.atoms(self.layouts[name][axis]))
        return tuple((node.name, g.name) for g in self._by_name.values() if g.dim in here)

    def trigger(
        self, start: NeuronSet | Group | str, rules_used: Iterable[str] = ("R1", "R2", "R3")
    ) -> frozenset[NeuronSet]:
        """Everything that must be pruned along with a trigger (LLM-Pruner, section 3.1).

        Args:
            start: a neuron set of :attr:`network`; or a group (or its name), whose first site is
                then the trigger.
            rules_used: which of ``R1``, ``R2``, ``R3`` propagate.

        Returns:
            The neuron sets reached, the start included. With R1 to R3 they are those of the group.

        Raises:
            GroupError: unknown group, neuron set or rule.
        """
        if isinstance(start, str):
            start = self[start]
        if isinstance(start, Group):
            site = start.sites[0]
            start = next(n for n in self.neurons(site.tensor, site.axis) if n[1] == start.name)
        return rules.closure(self.network, [start], rules_used)

    def sites_of(self, neurons: Iterable[NeuronSet]) -> frozenset[str]:
        """The parameter and buffer axes among neuron sets, as ``fqn[axis]``."""
        tensors = {(self.network.nodes[n]["tensor"], n[1]) for n in neurons}
        return frozenset(
            str(site)
            for tensor, name in tensors
            if tensor is not None
            for site in self[name].sites
            if site.tensor == tensor
        )

    def explain(self, name: str, to: str | None = None) -> Explanation:
        """Why tensors are coupled: the shortest path of dependencies from one to each other.

        Args:
            name: a group (frozen ones included); or a tensor, or a module's path, whose groups are
                then each explained, from there.
            to: only the paths to this tensor, or to the tensors of this module.

        Returns:
            The paths, step by step: op, module, line of code, and the rules that the step follows.
            It prints as text.

        Raises:
            GroupError: no group, tensor or module has that name, and the message offers close ones;
                or ``to`` is coupled with none of it.
        """
        from fxprune.inspect.explain import explain

        return explain(self, name, to)

    def to_dot(
        self,
        path: str | Path,
        *,
        layer: int | None = None,
        group: str | None = None,
        collapse: bool = False,
    ) -> Path:
        """Write the graph as a Graphviz DOT file, see :func:`fxprune.inspect.dot.write`."""
        from fxprune.inspect import dot

        return dot.write(self, path, layer=layer, group=group, collapse=collapse)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for group in self.groups:
            counts[group.kind] = counts.get(group.kind, 0) + 1
        inside = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        return f"DependencyGraph({inside}; {len(self.frozen)} frozen)"


def discover(traced: Traced) -> DependencyGraph:
    """Find every group of coupled structures.

    Linear in the number of graph nodes. Only shapes are read, so it works on ``meta`` models. The
    result is kept with the traced model and returned again on the next call.
    """
    known = traced.cache.get("dependency_graph")
    if not isinstance(known, DependencyGraph):
        known = traced.cache["dependency_graph"] = DependencyGraph(traced, infer(traced))
    return known


def _collect(traced: Traced, inferred: Inferred) -> list[Group]:
    tags: dict[Dim, set[str]] = {}
    for layout, tag in inferred.tags:
        for dim in dims.atoms(layout):
            tags.setdefault(dim, set()).add(tag)
    sites: dict[Dim, list[Site]] = {}
    for name, tensor in traced.tensors.items():
        layouts: tuple[Layout, ...] = inferred.tensors[name]
        for axis, layout in enumerate(layouts):
            for dim in dict.fromkeys(dims.atoms(layout)):
                site = Site(name, axis, layout, isinstance(tensor, nn.Parameter))
                sites.setdefault(dim, []).append(site)
    for dim in recurrent(inferred, tags):
        tags.setdefault(dim, set()).add("recurrent")
    role = roles(inferred.links, tags)
    least = least_of(inferred.least)
    groups: list[Group] = []
    taken: dict[str, int] = {}
    for dim, places in sites.items():
        weights = [s for s in places if s.parameter]
        if not weights:
            continue
        mine = tags.get(dim, set())
        kind = kinds.kind_of(mine, _matrices(traced.tensors, weights), role.get(dim))
        place = kinds.place_of(weights)
        name = f"{place}:{kinds.unit_word(kind, mine)}"
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        reason = dim.reason or (_FREE if dim.free else None)
        groups.append(
            Group(
                name,
                kind,
                dim.size,
                tuple(places),
                dim,
                "normalised" in mine,
                reason,
                kinds.layer_of(place),
                least.get(dim, 1),
                _ALIGNED if "aligned" in mine else 1,
            )
        )
    return _settled(groups, {dim for dim, part in role.items() if part == "branch"})


def _settled(groups: list[Group], inside: set[Dim]) -> list[Group]:
    """The groups; where residual branches have hidden units, only those are of kind ``mlp``.

    A pooler, a projector or a head is not an MLP of a layer, and no config counts its units.
    """
    if not any(group.kind == "mlp" and group.dim in inside for group in groups):
        return groups
    return [
        replace(group, kind="other")
        if group.kind == "mlp" and group.reason is None and group.dim not in inside
        else group
        for group in groups
    ]


def _matrices(tensors: dict[str, torch.Tensor], sites: list[Site]) -> int:
    return len({s.tensor for s in sites if tensors[s.tensor].dim() > 1})
