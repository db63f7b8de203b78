"""Run a graph on several batches in step, so that a node's inputs of all batches are at hand."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.trace.guards import check
from fxprune.trace.storage import mutates

Values = MutableMapping[fx.Node, Any]
_FEW = 8  # nodes that read weights, as a block has


class Weights(Protocol):
    """The tensors of a graph, of which only what runs is in memory."""

    def bring(self, nodes: Iterable[fx.Node]) -> None:
        """Have the tensors that some nodes read, and let go of all others."""
        ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...


class Store(Protocol):
    """Holds what a run does not need just now."""

    def put(self, key: Any, value: Any) -> None:
        """Hold a value."""
        ...

    def pop(self, key: Any) -> Any:
        """A value that is not held any more."""
        ...


class Lockstep:
    """Runs of one graph on several batches that all stop at the same node.

    Between two stops each batch runs by itself, so temporary values exist for one batch at a time.
    Memory: the values that are alive at a stop (used by it or after it), of all batches, and the
    temporaries of one. What no end needs is never computed (a language model's head, say).

    Between two stops the weights may change: later nodes read them when they run.

    Args:
        module: a traced or a rewritten graph, called under ``torch.no_grad`` or not, as is.
        inputs: of each batch, the values of the graph's placeholders, see :func:`flatten`.
        ends: the nodes that will be stopped at.
        keep: further values that have to be alive at a stop.
        late: nodes that run right before what reads them, and after a stop there: what they take
            out of the weights is large, or is to be taken out of weights that change at the stop.
        weights: the tensors, where they are not all in the module; those that nodes up to the next
            stop read, or to one half way, are there at a time.
        store: holds the values of the batches that do not run.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Sequence[Any]],
        ends: Iterable[fx.Node],
        keep: Mapping[fx.Node, Sequence[fx.Node]] = MappingProxyType({}),
        late: Collection[fx.Node] = (),
        weights: Weights | None = None,
        store: Store | None = None,
    ) -> None:
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._late, self._weights, self._store = frozenset(late), weights, store
        self._pending = _postponed(needed(module.graph, ends), self._late)
        if weights is not None:  # they are read where they are used
            self._pending = [n for n in self._pending if not _elsewhere(n, weights)]
        self._last: dict[fx.Node, list[fx.Node]] = {}
        last = {s: n for n in self._pending for s in (*n.all_input_nodes, *keep.get(n, ()))}
        for source, user in last.items():
            if weights is None or not _elsewhere(source, weights):
                self._last.setdefault(user, []).append(source)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        used = {s for n in self._pending for s in n.all_input_nodes} | set(self._pending)
        self._views = frozenset(_of_weights(module.graph, weights))
        self._environments: list[Values] = [
            self._environment(
                {
                    node: value
                    for node, value in zip(placeholders, each, strict=True)
                    if node in used
                }
            )
            for each in inputs
        ]
        self._pending = [node for node in self._pending if node.op != "placeholder"]

    def _environment(self, values: dict[fx.Node, Any]) -> Values:
        if self._weights is None and self._store is None:
            return values
        return _Parked(values, self._weights, self._store, self._views)

    def advance(self, node: fx.Node, *, through: bool = False) -> Iterator[Values]:
        """Run every batch up to a node, one after the other.

        The iterator must be run to its end before the next call.

        Args:
            node: where to stop; it comes after all earlier stops.
            through: run the node too. Its inputs are then freed when the iterator goes on.

        Yields:
            For each batch the values that are alive, by node. A value that is changed here is
            what later nodes read.
        """
        place = self._pending.index(node)
        while place and not through and self._pending[place - 1] in self._late:
            place -= 1
        if self._weights is not None:
            place -= self._run_parts(place, self._weights)
        segment = self._pending[: place + through]
        if self._weights is not None:
            self._weights.bring(self._pending[: self._pending.index(node) + 1])
        for environment in self._environments:
            self._run(environment, [n for n in segment if n is not node])
            if through:
                self._interpreter.env = environment  # type: ignore[assignment]
                environment[node] = self._interpreter.run_node(node)
            yield environment
            if through:
                self._free(environment, node)
            _park(environment)
        self._pending = self._pending[place + through :]

    def _run_parts(self, place: int, weights: Weights) -> int:
        """Run what is far before a stop in parts, each with few weights; returns how many nodes."""
        start = count = 0
        for number, node in enumerate(self._pending[:place], start=1):
            count += node.op == "call_module" or any(
                _elsewhere(source, weights) for source in node.all_input_nodes
            )
            if count == _FEW and node not in self._late:
                part = self._pending[start:number]
                weights.bring(part)
                for environment in self._environments:
                    self._run(environment, part)
                    _park(environment)
                start, count = number, 0
        self._pending = self._pending[start:]
        return start

    def ahead(
        self,
        number: int,
        node: fx.Node,
        changed: Mapping[fx.Node, Any] = MappingProxyType({}),
        changes: Mapping[fx.Node, Callable[[Values, Any], Any]] = MappingProxyType({}),
    ) -> Any:
        """What a later node gives for one batch; the run itself stays where it is.

        Args:
            number: of the batch.
            node: one of the ends, not passed yet.
            changed: values to go on with in the place of those that are alive or would come.
            changes: what nodes give instead, from the values that are alive and what they give.
        """
        nodes = self._pending[: self._pending.index(node) + 1]
        values: Mapping[fx.Node, Any] = self._environments[number]
        if self._weights is not None:
            self._weights.bring(nodes)
        if any(mutates(each) for each in nodes):
            module = self._interpreter.module
            own = {id(each): each for each in (*module.parameters(), *module.buffers())}
            values = dict(zip(values, copy.deepcopy(list(values.values()), own), strict=True))
        environment = self._environment({**values, **changed})
        self._run(environment, [each for each in nodes if each not in changed], changes)
        return environment[node]

    @property
    def values(self) -> Iterator[Values]:
        """Of each batch, the values that are alive, by node."""
        for environment in self._environments:
            yield environment
            _park(environment)

    def _run(
        self,
        environment: Values,
        nodes: list[fx.Node],
        changes: Mapping[fx.Node, Callable[[Values, Any], Any]] = MappingProxyType({}),
    ) -> None:
        self._interpreter.env = environment  # type: ignore[assignment]
        for node in nodes:
            value = self._interpreter.run_node(node)
            if node in changes:
                value = changes[node](environment, value)
            if node.target is not check:
                environment[node] = value
            self._free(environment, node)

    def _free(self, environment: Values, node: fx.Node) -> None:
        for source in self._last.get(node, ()):
            del environment[source]


class _Parked(Values):
    """The values of one batch, of which those that lie elsewhere are fetched when they are read.

    Args:
        values: by node.
        weights: has the tensors of the graph, if the nodes that read them are not run.
        store: holds the others while the batch is parked.
        views: nodes of which the values stay, for they may be views of weights that change.
    """

    def __init__(
        self,
        values: dict[fx.Node, Any],
        weights: Weights | None,
        store: Store | None,
        views: Collection[fx.Node] = (),
    ) -> None:
        self._here, self._weights, self._store, self._views = values, weights, store, views
        self._away: dict[fx.Node, torch.device] = {}

    def __getitem__(self, node: fx.Node) -> Any:
        if node in self._away and self._store is not None:
            device = self._away.pop(node)
            self._here[node] = self._store.pop((id(self), node)).to(device)
        elif self._weights is not None and _elsewhere(node, self._weights):
            return self._weights[str(node.target)]
        return self._here[node]

    def __setitem__(self, node: fx.Node, value: Any) -> None:
        if node in self._away:
            del self[node]
        self._here[node] = value

    def __delitem__(self, node: fx.Node) -> None:
        if self._away.pop(node, None) is not None and self._store is not None:
            self._store.pop((id(self), node))
        else:
            del self._here[node]

    def __contains__(self, node: object) -> bool:
        weights = self._weights
        return (
            node in self._here
            or node in self._away
            or (weights is not None and isinstance(node, fx.Node) and _elsewhere(node, weights))
        )

    def __iter__(self) -> Iterator[fx.Node]:
        yield from [*self._here, *self._away]

    def __len__(self) -> int:
        return len(self._here) + len(self._away)

    def park(self) -> None:
        """Let the tensors be held elsewhere; what shares memory with others stays."""
        tensors = {n: x for n, x in self._here.items() if isinstance(x, torch.Tensor)}
        shared = Counter(x.untyped_storage()._cdata for x in tensors.values())
        for node, value in tensors.items() if self._store is not None else ():
            if shared[value.untyped_storage()._cdata] == 1 and node not in self._views:
                assert self._store is not None
                self._store.put((id(self), node), value)
                self._away[node] = value.device
                del self._here[node]


def _park(environment: Values) -> None:
    if isinstance(environment, _Parked):
        environment.park()


def _elsewhere(node: fx.Node, weights: Weights) -> bool:
    return node.op == "get_attr" and node.target in weights


def _of_weights(graph: fx.Graph, weights: Weights | None) -> Iterator[fx.Node]:
    """The nodes that read nothing but tensors which are elsewhere."""
    found: set[fx.Node] = set()
    for node in graph.nodes if weights is not None else ():
        read = node.all_input_nodes
        if read and all(
            n in found or (weights is not None and _elsewhere(n, weights)) for n in read
        ):
            found.add(node)
            yield node


def _postponed(nodes: list[fx.Node], late: Collection[fx.Node]) -> list[fx.Node]:
    """The nodes in an order in which some come right before the first that reads them."""
    waiting, found = set(late).intersection(nodes), dict[fx.Node, None]()

    def place(node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in waiting and source not in found:
                place(source)
        found[node] = None

    for node in nodes:
        if node not in waiting:
            place(node)
    return list(found)


def needed(graph: fx.Graph, ends: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that the ends are computed from, themselves included, in graph order."""
    wanted = set(ends)
    seen_end = False
    for node in reversed(graph.nodes):
        seen_end = seen_end or node in wanted
        # What changes a tensor in place may be read through that tensor; guards are always asked.
        if node in wanted or (seen_end and mutates(node)) or node.target is check:
            wanted.add(node)
            wanted.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in wanted]


def input_names(module: fx.GraphModule) -> tuple[str, ...]:
    """The named inputs that a traced or rewritten graph takes."""
    return tuple(_signature(module).orig_args)


def flatten(module: fx.GraphModule, named: Mapping[str, Any]) -> list[Any]:
    """Inputs by name as the values of the graph's placeholders, in their order.

    Args:
        module: a traced or rewritten graph.
        named: a value for each of :func:`input_names`.
    """
    info = _signature(module)
    positional, by_name = info.in_spec.children()
    first = tuple(named[name] for name in info.orig_args[: positional.num_children])
    leaves: list[Any] = pytree.tree_leaves((first, {name: named[name] for name in by_name.context}))
    return leaves


def _signature(module: fx.GraphModule) -> Any:
    codegen: Any = module.graph._codegen
    return codegen.pytree_info
