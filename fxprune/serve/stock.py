"""The engine ``transformers``: a stock checkpoint, one config for all layers.

``from_pretrained`` loads it without code of others. Which numbers of units such a config can say is
read off the groups, and a plan is tried on ``meta``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fxprune.axes.dims import Dim, find
from fxprune.errors import ServeError, ShrinkError
from fxprune.hf.folder import module_folder
from fxprune.plan import Plan
from fxprune.select.target import Target
from fxprune.serve.remote import Remote

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.groups.group import Group

# Kinds of which any transformers config holds the size, where it is the same in every layer.
_IN_CONFIG = ("mlp", "attention", "query", "head_dim", "channel")


class Stock(Remote):
    """All layers alike."""

    name: ClassVar[str] = "transformers"

    def check(self, plan: Plan, graph: DependencyGraph) -> list[str]:
        """See :meth:`Engine.check`."""
        try:
            self._check_class(graph)
        except ServeError as error:
            return [str(error)]
        found = []
        config, counts = config_of(graph), plan.kept_counts(graph)
        if config is not None:
            heads = dict.fromkeys(_heads(graph, layer, counts) for layer in _attention(graph))
            hidden = _hidden(graph, config, counts)
            found = [reason for n in heads for reason in _refused(config, n, hidden)]
        why = "" if found else self._untold(graph, plan)
        if not found and not why:
            return Target(self.name).reasons(graph, plan)
        # What may stay of one kind if the others keep all says nothing of several together.
        found = [*replace(self.target(graph), kept={}).reasons(graph, plan), *found]
        return found or [why]

    def _target(self, graph: DependencyGraph) -> Target:
        config = config_of(graph)
        alike: dict[tuple[str, int], list[Group]] = {}
        for group in graph.groups:
            alike.setdefault((group.kind, group.size), []).append(group)
        kinds: list[str] = []
        kept: dict[tuple[str, int], frozenset[int]] = {}
        for (kind, size), groups in alike.items():
            most = _largest(graph, config, groups)
            if config is not None and kind in _IN_CONFIG:
                numbers = sizes(graph, config, groups)
                kept |= {(kind, size): frozenset(numbers)} if len(numbers) < size else {}
            less = {group.name: range(most) for group in groups}
            if most and not self._untold(graph, Plan.of(graph, less)):
                kinds.append(kind)
        return Target(self.name, tuple(kinds), even=True, kept=kept)

    def _checked(self, model: PreTrainedModel) -> PreTrainedModel:
        if module_folder.describe(model)["stack"] is not None:
            raise ShrinkError(
                "its layers have sizes of their own, which a stock class does not build: "
                "transformers-remote does"
            )
        return model


def sizes(graph: DependencyGraph, config: Any, groups: Sequence[Group]) -> tuple[int, ...]:
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


def _largest(graph: DependencyGraph, config: Any, groups: Sequence[Group]) -> int:
    """The largest number of units below all that these groups might keep; 0 for none."""
    first = groups[0]
    if config is not None and first.kind in _IN_CONFIG:
        return next(iter(sizes(graph, config, groups)[-2:-1]), 0)
    # Some classes have an entry for the number of experts, or of states: it is tried.
    every = sum(g.kind == first.kind for g in (*graph.groups, *graph.frozen))
    most = (first.size - 1) // first.multiple * first.multiple
    return most if every == len(groups) and most >= first.least else 0


def _refused(config: Any, heads: int, hidden: int) -> list[str]:
    """Why a config of so many query heads and channels is refused."""
    found = []
    insists = config.hidden_size % config.num_attention_heads == 0
    if insists and hidden % heads:
        found.append(
            f"{heads} query heads do not divide hidden_size {hidden}, which configs insist on"
        )
    changed = (heads, hidden) != (int(config.num_attention_heads), int(config.hidden_size))
    if changed and not _has_head_dim(config):
        found.append(
            f"the config has no head_dim, so {heads} heads of {hidden} channels change their size"
        )
    return found


def config_of(graph: DependencyGraph) -> Any:
    """The config that says the sizes of the model; None if it has none such."""
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
    for group in of_layer(graph, layer):
        if group.kind in ("attention", "query"):
            heads *= counts.get(find(group.dim), group.size)
    return heads


def of_layer(graph: DependencyGraph, layer: tuple[str, int] | None) -> Iterable[Group]:
    """The groups of a layer, frozen ones too."""
    return (group for group in (*graph.groups, *graph.frozen) if group.layer == layer)


ENGINE = Stock()
