"""Which values and which layers of the neuron graph are drawn."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.groups.kinds import layer_of
from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.fold import Layer, classes, hidden, inside

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_PART = re.compile(r"[^.]+(\.\d+)*(?![^.])")
_LEAST = 3  # so many layers alike are drawn once


@dataclass(frozen=True)
class Value:
    """A value of the FX graph.

    Attributes:
        name: of the FX node.
        module: FQN of the module that makes the value or owns the tensor.
        source: line of model code.
        tensor: canonical FQN of a parameter or buffer, else None.
        parameter: a weight, or derived from weights alone.
        layer: the numbered layer it lies in.
        groups: names of the groups that are shown of it: those in focus, else those next to them.
        axes: for a parameter, the axis each of these is on.
    """

    name: str
    module: str
    source: str
    tensor: str | None
    parameter: bool
    layer: Layer | None
    groups: tuple[str, ...]
    axes: tuple[str, ...]

    @property
    def path(self) -> str:
        """What tells it from the other values of its layer, alike in every layer."""
        place = self.tensor or f"{self.module}:{re.sub(r'_[0-9]+$', '', self.name)}"
        return inside(place, self.layer)

    @property
    def frames(self) -> tuple[str, ...]:
        """The layer and the part of it, or the module."""
        if self.layer is None:
            return (self.module,) if self.module else ()
        layer = f"{self.layer[0]}.{self.layer[1]}"
        part = _PART.match(inside(self.module, self.layer))
        return (layer, f"{layer}.{part.group()}") if part else (layer,)


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Attributes:
        values: by name, in the order of the graph.
        focus: the neuron sets asked for; the other cells are context.
        folded: neighbouring layers that are not drawn, each like one that is.
        like: for each of ``folded``, the numbers of the layers they are like.
        fold: values in layers that are not drawn, to which of ``folded`` they are in.
    """

    values: dict[str, Value]
    focus: Collection[NeuronSet]
    folded: tuple[tuple[Layer, ...], ...]
    like: tuple[tuple[int, ...], ...]
    fold: dict[str, int]


def scene(graph: DependencyGraph, wanted: Collection[str] | None) -> Scene:
    """The values that carry a wanted group (any, for None), and the values next to them."""
    network = graph.network
    focus = dict.fromkeys(s for s in network if wanted is None or s[1] in wanted)
    near = dict.fromkeys(s for f in focus for s in (*network.pred[f], *network.succ[f]))
    values = _values(graph, focus, near)
    signatures = _signatures(graph, values.values())
    model = {layer: alike[0][1] for alike in classes(signatures) for layer in alike}
    folded = tuple(hidden(signatures, _LEAST))
    like = tuple(tuple(sorted({model[layer] for layer in run})) for run in folded)
    place = {layer: number for number, run in enumerate(folded) for layer in run}
    fold = {v.name: place[v.layer] for v in values.values() if v.layer in place}
    return Scene(values, focus, folded, like, fold)


def _values(
    graph: DependencyGraph, focus: Collection[NeuronSet], near: Collection[NeuronSet]
) -> dict[str, Value]:
    asked: dict[str, list[str]] = {}
    beside: dict[str, list[str]] = {}
    for name, group in graph.network:
        if (name, group) in focus:
            asked.setdefault(name, []).append(group)
        elif (name, group) in near:
            beside.setdefault(name, []).append(group)
    order = dict.fromkeys(name for name, _ in graph.network)
    shown = {name: asked.get(name) or beside.get(name) for name in order}
    axes = _axes(graph)
    return {name: _value(graph, name, groups, axes) for name, groups in shown.items() if groups}


def _axes(graph: DependencyGraph) -> dict[tuple[str, str], str]:
    """On which axes of a tensor a group is, as text."""
    found: dict[tuple[str, str], list[int]] = {}
    for group in (*graph.groups, *graph.frozen):
        for site in group.sites:
            found.setdefault((site.tensor, group.name), []).append(site.axis)
    return {key: ", ".join(map(str, sorted(set(axes)))) for key, axes in found.items()}


def _value(
    graph: DependencyGraph, name: str, groups: list[str], axes: dict[tuple[str, str], str]
) -> Value:
    data = graph.network.nodes[name, groups[0]]
    tensor = data["tensor"]
    module = tensor.rpartition(".")[0] if tensor else data["module"]
    on = tuple(axes.get((tensor, group), "") for group in groups) if tensor else ()
    layer = layer_of(module)
    return Value(name, module, data["source"], tensor, data["parameter"], layer, tuple(groups), on)


def _signatures(graph: DependencyGraph, values: Iterable[Value]) -> dict[Layer, Hashable]:
    """What a layer looks like, sizes and its number apart."""
    found: dict[Layer, list[Hashable]] = {}
    for value in values:
        if value.layer is not None:
            groups = tuple(
                (inside(name, value.layer), graph[name].kind, graph[name].reason is None)
                for name in value.groups
            )
            found.setdefault(value.layer, []).append((value.path, value.parameter, groups))
    return {layer: tuple(parts) for layer, parts in found.items()}
