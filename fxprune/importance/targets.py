"""What the criteria look at on the model: groups, parameters, and modules that read the units."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fxprune.axes.dims import find
from fxprune.errors import CriterionError
from fxprune.groups.consumers import Consumer, consumers, origin_in
from fxprune.groups.group import Group, Site
from fxprune.importance.activations import can_observe
from fxprune.importance.criterion import Criterion

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


@dataclass(frozen=True, eq=False)
class Reader:
    """A consumer's weight on the model, with the modules that apply it.

    Attributes:
        site: the weight and its input axis.
        output_axis: the weight's output axis.
        modules: the modules whose first input is ``x`` of ``y = x W``; several if tied. None where
            the weight is a stack of those of experts, or the graph is what is observed.
        uses: the products with the weight in the graph.
    """

    site: Site
    output_axis: int
    modules: tuple[nn.Module, ...]
    uses: tuple[Consumer, ...] = ()

    @property
    def stacked(self) -> tuple[Consumer, ...]:
        """The products with a weight that is a stack; no module has their inputs."""
        return tuple(use for use in self.uses if use.stack is not None)


def chosen_groups(
    graph: DependencyGraph, groups: Sequence[Group] | None, kinds: Collection[str] | None
) -> tuple[Group, ...]:
    """The groups to score.

    Raises:
        CriterionError: if two of them have one name.
    """
    every = graph.groups if groups is None else groups
    chosen = tuple(group for group in every if kinds is None or group.kind in kinds)
    names = [group.name for group in chosen]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CriterionError(f"two groups are called {twice!r}: scores go by name")
    return chosen


def parameters(
    model: nn.Module, graph: DependencyGraph, groups: Iterable[Group]
) -> dict[str, nn.Parameter]:
    """The parameters at the groups' sites, by canonical name.

    Raises:
        CriterionError: if one is missing, has another shape, is on meta or not floating point.
    """
    aliases = graph.traced.aliases
    found = {aliases.get(n, n): p for n, p in model.named_parameters(remove_duplicate=False)}
    wanted = {}
    for site in (site for group in groups for site in group.sites if site.parameter):
        parameter = found.get(site.tensor)
        if parameter is None:
            raise CriterionError(f"the model has no parameter {site.tensor!r}: not the graph's?")
        if parameter.is_meta:
            raise CriterionError(f"{site.tensor!r} is on meta: scores need the weights")
        if not parameter.is_floating_point():
            raise CriterionError(f"{site.tensor!r} is {parameter.dtype}: scores need floats")
        if parameter.ndim <= site.axis or parameter.shape[site.axis] != site.layout.size:
            raise CriterionError(
                f"{site.tensor!r} has shape {tuple(parameter.shape)}, and the graph has "
                f"{site.layout.size} on axis {site.axis}: not the graph's model"
            )
        wanted[site.tensor] = parameter
    return wanted


def readers(
    model: nn.Module | None,
    graph: DependencyGraph,
    groups: Iterable[Group],
    criterion: Criterion,
) -> dict[str, tuple[Reader, ...]]:
    """The readers of every group, by its name, one per weight.

    Args:
        model: the model; None where the graph is observed.
        graph: the graph.
        groups: the groups; may be others than the graph's with the same dims, of which the
            consumers among their sites count.
        criterion: who asks, for the error.

    Raises:
        CriterionError: if a group has none, or one whose input cannot be observed or, where the
            criterion needs moments, that cannot be refitted.
    """
    owners = None if model is None else _owners(model, graph)
    names = {find(group.dim): group for group in (*graph.groups, *graph.frozen)}
    result = {}
    for group in groups:
        known = names.get(find(group.dim))
        sites = {(site.tensor, site.axis) for site in group.sites}
        found: dict[tuple[str, int], list[Consumer]] = {}
        for consumer in consumers(graph, known) if known is not None else ():
            key = consumer.site.tensor, consumer.site.axis
            if key in sites:
                found.setdefault(key, []).append(consumer)
        if not found:
            others = _OF_EXPERTS if group.kind == "expert" else _OTHERS
            raise CriterionError(
                f"{criterion!r} cannot score group {group.name!r} ({group.kind}): no product with "
                f"a weight reads its units as input; {others}"
            )
        result[group.name] = tuple(
            _reader(uses, owners, group, criterion) for uses in found.values()
        )
    if "moments" in criterion.needs:
        _check_refittable(graph, criterion, groups, result)
        _check_tokens(graph, criterion, groups, result)
    return result


def _check_refittable(
    graph: DependencyGraph,
    criterion: Criterion,
    groups: Iterable[Group],
    readers: Mapping[str, tuple[Reader, ...]],
) -> None:
    """Refuse, before any matrix is allocated, groups whose consumers cannot be refitted.

    Raises:
        CriterionError: the units are averaged in a norm, or a consumer is not a matrix.
    """
    for group in groups:
        convolves = any(
            graph.traced.tensors[reader.site.tensor].ndim != 2
            for reader in readers[group.name]
            if not reader.stacked
        )
        # A norm over what a state gives out is in the branch, and what is refitted sees it change.
        if (group.normalised and group.kind != "state") or convolves:
            why = "a convolution reads them" if convolves else "a norm averages them"
            raise CriterionError(
                f"{criterion!r} cannot score group {group.name!r} ({group.kind}): {why}; leave "
                "such groups out with kinds=..., or take Taylor()"
            )


def _check_tokens(
    graph: DependencyGraph,
    criterion: Criterion,
    groups: Iterable[Group],
    readers: Mapping[str, tuple[Reader, ...]],
) -> None:
    """Refuse experts of which it cannot be told how many tokens come past: no loss is per token.

    Raises:
        CriterionError: there are some.
    """
    for group in groups:
        for use in (use for reader in readers[group.name] for use in reader.stacked):
            if use.stack is not None and origin_in(graph.traced, use.stack) is None:
                raise CriterionError(
                    f"{criterion!r} cannot score group {group.name!r} ({group.kind}): which token "
                    f"each row of {use.site.tensor!r} is of cannot be told; {_OTHERS}"
                )


_OTHERS = (
    "Random, Magnitude, Taylor and PeakToPeak(activations=False) can, "
    "or leave such groups out with kinds=..."
)
_OF_EXPERTS = f"REAP() and Frequency() score experts, {_OTHERS}"


def _reader(
    uses: list[Consumer],
    owners: Mapping[str, list[nn.Module]] | None,
    group: Group,
    criterion: Criterion,
) -> Reader:
    consumer = uses[0]
    if owners is None or consumer.stack is not None:
        return Reader(consumer.site, consumer.output_axis, (), tuple(uses))
    # A tied weight has further owners, such as an embedding.
    found = owners.get(consumer.site.tensor, [])
    modules = tuple(module for module in found if can_observe(module))
    if not modules:
        types = ", ".join(type(module).__name__ for module in found) or "no module"
        raise CriterionError(
            f"{criterion!r} cannot score group {group.name!r} ({group.kind}): the weight "
            f"{consumer.site.tensor!r} belongs to {types}, and only the inputs of nn.Linear, "
            f"convolutions and transformers' Conv1D are observed; {_OTHERS}"
        )
    return Reader(consumer.site, consumer.output_axis, modules, tuple(uses))


def _owners(model: nn.Module, graph: DependencyGraph) -> dict[str, list[nn.Module]]:
    """The modules that own each parameter, by its canonical name."""
    found: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = graph.traced.canonical(f"{path}.{name}" if path else name)
            found.setdefault(full, []).append(module)
    return found
