"""Run a graph on several batches in step, so that a node's inputs of all batches are at hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxprune.trace.guards import check
from fxprune.trace.storage import mutates


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
    """

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Sequence[Any]],
        ends: Iterable[fx.Node],
        keep: Mapping[fx.Node, Sequence[fx.Node]] = MappingProxyType({}),
        late: Collection[fx.Node] = (),
    ) -> None:
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._late = frozenset(late)
        self._pending = _postponed(needed(module.graph, ends), self._late)
        self._last: dict[fx.Node, list[fx.Node]] = {}
        last = {s: n for n in self._pending for s in (*n.all_input_nodes, *keep.get(n, ()))}
        for source, user in last.items():
            self._last.setdefault(user, []).append(source)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        used = {s for n in self._pending for s in n.all_input_nodes} | set(self._pending)
        self._environments: list[dict[fx.Node, Any]] = [
            {node: value for node, value in zip(placeholders, each, strict=True) if node in used}
            for each in inputs
        ]
        self._pending = [node for node in self._pending if node.op != "placeholder"]

    def advance(self, node: fx.Node, *, through: bool = False) -> Iterator[dict[fx.Node, Any]]:
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
        segment = self._pending[: place + through]
        for environment in self._environments:
            self._run(environment, [n for n in segment if n is not node])
            if through:
                self._interpreter.env = environment
                environment[node] = self._interpreter.run_node(node)
            yield environment
            if through:
                self._free(environment, node)
        self._pending = self._pending[place + through :]

    def ahead(
        self,
        number: int,
        node: fx.Node,
        changed: Mapping[fx.Node, Any] = MappingProxyType({}),
        changes: Mapping[fx.Node, Callable[[dict[fx.Node, Any], Any], Any]] = MappingProxyType({}),
    ) -> Any:
        """What a later node gives for one batch; the run itself stays where it is.

        Args:
            number: of the batch.
            node: one of the ends, not passed yet.
            changed: values to go on with in the place of those that are alive or would come.
            changes: what nodes give instead, from the values that are alive and what they give.
        """
        nodes = self._pending[: self._pending.index(node) + 1]
        values = self._environments[number]
        if any(mutates(each) for each in nodes):
            module = self._interpreter.module
            own = {id(each): each for each in (*module.parameters(), *module.buffers())}
            values = dict(zip(values, copy.deepcopy(list(values.values()), own), strict=True))
        environment = {**values, **changed}
        self._run(environment, [each for each in nodes if each not in changed], changes)
        return environment[node]

    @property
    def values(self) -> list[dict[fx.Node, Any]]:
        """Of each batch, the values that are alive, by node."""
        return self._environments

    def _run(
        self,
        environment: dict[fx.Node, Any],
        nodes: list[fx.Node],
        changes: Mapping[fx.Node, Callable[[dict[fx.Node, Any], Any], Any]] = MappingProxyType({}),
    ) -> None:
        self._interpreter.env = environment
        for node in nodes:
            value = self._interpreter.run_node(node)
            if node in changes:
                value = changes[node](environment, value)
            if node.target is not check:
                environment[node] = value
            self._free(environment, node)

    def _free(self, environment: dict[fx.Node, Any], node: fx.Node) -> None:
        for source in self._last.get(node, ()):
            del environment[source]


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
