"""The weights of a dense graph and of what a plan makes of it, read from a source as they run."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from fxprune.data.loader import Source, give_back
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.resize import Resizer
from fxprune.rewrite.planned import sliced
from fxprune.trace.traced import Traced

_AHEAD = 12  # tensors, as a block has
_CALL = re.compile(r"@\d+")


class Mended(Protocol):
    """New values of tensors of a smaller model."""

    def get(self, name: str) -> Tensor | None:
        """The value by the canonical name in the original; None where it is the original's."""
        ...


@dataclass(eq=False)
class DenseWeights:
    """The tensors of a traced model that some nodes read.

    Attributes:
        traced: the model; its own tensors may be on ``meta``.
        source: where its weights come from.
        here: those that are in memory, by canonical name.
    """

    traced: Traced
    source: Source
    here: dict[str, Tensor] = field(default_factory=dict)
    _order: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        nodes = self.traced.graph_module.graph.nodes
        used = (str(source.target) for node in nodes for source in tensors_read(node))
        self._order = {name: place for place, name in enumerate(dict.fromkeys(used))}

    def __contains__(self, name: object) -> bool:
        return name in self.traced.tensors

    def __getitem__(self, name: str) -> Tensor:
        found = self.here.get(name)
        return self.read(name) if found is None else found

    def bring(self, nodes: Iterable[fx.Node]) -> None:
        """Have the tensors that some nodes of the graph read, and no others."""
        wanted = {str(source.target) for node in nodes for source in tensors_read(node)}
        _keep(self.here, wanted)
        new = {name for name in wanted - self.here.keys() if name in self.traced.tensors}
        for name in new:
            self.here[name] = self.read(name)
        if new:
            last = max(self._order.get(name, 0) for name in new)
            then = [n for n, place in self._order.items() if last < place <= last + _AHEAD]
            self.source.ahead(self.traced.original or self.traced, then)

    def read(self, name: str) -> Tensor:
        """A tensor from the source, a parameter as such."""
        found = self.source.read(self.traced.original or self.traced, name)
        is_parameter = isinstance(self.traced.tensors.get(name), nn.Parameter)
        return nn.Parameter(found, requires_grad=False) if is_parameter else found


@dataclass(frozen=True)
class _Slot:
    """Where a tensor of a smaller graph is held: by which module, under which name."""

    holder: nn.Module
    leaf: str
    name: str


@dataclass(eq=False)
class SmallWeights:
    """The tensors of a rewritten graph that some nodes read: put into its modules for a while.

    Each is sliced from the original's by the plan, unless it has a new value.

    Attributes:
        graph: the groups of the original, without what the plan removes whole.
        resize: what becomes of their axes.
        small: the rewritten graph, whose own tensors are on ``meta``.
        biases: names of those that the plan adds, of zeros.
        dense: gives the original's.
        mended: the new values.
        here: those that are in memory, by canonical name in the original.
    """

    graph: DependencyGraph
    resize: Resizer
    small: fx.GraphModule
    biases: Collection[str]
    dense: DenseWeights
    mended: Mended | None = None
    here: dict[str, Tensor] = field(default_factory=dict)
    _blank: dict[_Slot, Tensor] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return name in self.graph.traced.tensors

    def __getitem__(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        found: Tensor = getattr(self.small.get_submodule(path), leaf)
        return found

    def bring(self, nodes: Iterable[fx.Node], *, beside: bool = False) -> None:
        """Have the tensors that some nodes of the graph read.

        Args:
            nodes: the nodes.
            beside: beside those that are there; else no others.
        """
        wanted = {slot for node in nodes for slot in self._slots(node)}
        wanted |= self._blank.keys() if beside else set()
        for slot in self._blank.keys() - wanted:
            _set(slot, self._blank.pop(slot))
        _keep(self.here, {slot.name for slot in wanted})
        for slot in sorted(wanted - self._blank.keys(), key=lambda slot: slot.name):
            blank = getattr(slot.holder, slot.leaf)
            if blank.is_meta:
                if slot.name not in self.here:
                    self.here[slot.name] = self.read(slot.name, blank)
                self._blank[slot] = blank
                _set(slot, self.here[slot.name])

    def read(self, name: str, blank: Tensor) -> Tensor:
        """What a tensor of the smaller graph is.

        Args:
            name: canonical.
            blank: has its shape and dtype.
        """
        device = self.dense.source.device
        found = None if self.mended is None else self.mended.get(name)
        if found is not None:
            found = found.to(device, copy=True)
        elif name in self.biases:
            found = torch.zeros(blank.shape, dtype=blank.dtype, device=device)
        else:
            whole = self.dense[name]
            found = sliced(self.graph, self.resize, name, whole.detach())
            assert found is not None, name
            # What is whole may be the dense model's own, which keeps its values.
            shared = found.untyped_storage()._cdata == whole.untyped_storage()._cdata
            found = found.clone() if shared else found
        return nn.Parameter(found, requires_grad=False) if _is_parameter(blank) else found

    def of_graph(self, name: str) -> Tensor:
        """A tensor by its name in the smaller graph, on the CPU."""
        path, _, leaf = name.rpartition(".")
        blank: Tensor = getattr(self.small.get_submodule(path), leaf)
        if not blank.is_meta:
            return blank.detach().cpu()
        canonical = self.graph.traced.canonical(_CALL.sub("", name))
        return self.read(canonical, blank).detach().cpu()

    def _slots(self, node: fx.Node) -> Iterator[_Slot]:
        held = [(str(source.target).rpartition("."), source) for source in tensors_read(node)]
        pairs = [(self.small.get_submodule(path), leaf) for (path, _, leaf), _ in held]
        prefixes = [path for (path, _, _), _ in held]
        if node.op == "call_module":
            module = self.small.get_submodule(str(node.target))
            own = [
                n
                for n, t in (*module._parameters.items(), *module._buffers.items())
                if t is not None
            ]
            pairs += [(module, leaf) for leaf in own]
            prefixes += [str(node.target)] * len(own)
        for (holder, leaf), path in zip(pairs, prefixes, strict=True):
            full = _CALL.sub("", f"{path}.{leaf}" if path else leaf)
            if isinstance(getattr(holder, leaf, None), Tensor):
                yield _Slot(holder, leaf, self.graph.traced.canonical(full))


def tensors_read(node: fx.Node) -> list[fx.Node]:
    """The nodes of tensors of the model that a node reads."""
    return [source for source in node.all_input_nodes if source.op == "get_attr"]


def _keep(here: dict[str, Tensor], wanted: set[str]) -> None:
    gone = here.keys() - wanted
    for name in gone:
        del here[name]
    if gone:
        give_back()


def _set(slot: _Slot, value: Tensor) -> None:
    if slot.leaf in slot.holder._buffers:
        slot.holder._buffers[slot.leaf] = value
    else:
        setattr(slot.holder, slot.leaf, value)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)
