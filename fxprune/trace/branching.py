"""One run of a graph that can be continued from the middle in several ways."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.trace.guards import check
from fxprune.trace.lockstep import needed
from fxprune.trace.storage import mutates

Values = dict[fx.Node, Any]


class BranchingRun:
    """Runs a graph once and, at chosen nodes, to its end with other values.

    What lies before the node is computed once for all continuations. Call it under
    ``torch.no_grad``.

    Args:
        module: a traced or a rewritten graph.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        graph = module.graph
        self._graph = graph
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._end = graph.output_node()
        self._order = needed(graph, [self._end])
        self._last: dict[fx.Node, list[fx.Node]] = {}
        for source, user in {s: n for n in self._order for s in n.all_input_nodes}.items():
            self._last.setdefault(user, []).append(source)
        # Continuations must not change what the run itself goes on with.
        self._in_place = any(mutates(node) for node in self._order)

    def before(self, node: fx.Node) -> fx.Node:
        """Behind which node to stop so that :meth:`finish` runs this one first."""
        return self._order[self._order.index(node) - 1]

    def stops(
        self, inputs: Sequence[Any], at: Iterable[fx.Node], keep: Iterable[fx.Node] = ()
    ) -> Iterator[tuple[fx.Node, Values, Values]]:
        """Run to the end, stopping behind some nodes.

        Args:
            inputs: the values of the graph's placeholders.
            at: where to stop.
            keep: nodes whose values are wanted later than the graph itself needs them.

        Yields:
            The node, the values that are alive (for :meth:`finish`) and the kept ones so far.
        """
        stops, wanted = set(at), set(keep)
        placeholders = [node for node in self._graph.nodes if node.op == "placeholder"]
        environment: Values = dict(zip(placeholders, inputs, strict=True))
        kept: Values = {}
        for node in placeholders:
            if node in wanted:
                kept[node] = self._own(node, environment[node])
        for node in self._order:
            if node.op != "placeholder":
                self._step(environment, node)
            if node in wanted:
                kept[node] = self._own(node, environment[node])
            if node in stops:
                yield node, environment, kept
                stops.discard(node)
                if not stops:
                    return

    def finish(self, after: fx.Node, values: Values, changed: Mapping[fx.Node, Any]) -> Any:
        """The graph's output, run on from behind a node with some values changed."""
        environment = {**values, **changed}
        if self._in_place:
            environment = _copied(environment)
        for node in self._order[self._order.index(after) + 1 :]:
            if node.op not in ("placeholder", "output"):
                self._step(environment, node)
        self._interpreter.env = environment
        return self._graph.process_outputs(self._interpreter.run_node(self._end))

    def _step(self, environment: Values, node: fx.Node) -> None:
        if node.op == "output":
            return
        self._interpreter.env = environment
        value = self._interpreter.run_node(node)
        if node.target is not check:
            environment[node] = value
        for source in self._last.get(node, ()):
            environment.pop(source, None)

    def _own(self, node: fx.Node, value: Any) -> Any:
        if self._in_place and node.op != "get_attr" and isinstance(value, torch.Tensor):
            return value.clone()
        return value


def _copied(values: Values) -> Values:
    """Copies that share memory with one another where the values do. Weights are not copied."""
    nodes = [node for node in values if node.op != "get_attr"]
    copies = copy.deepcopy([values[node] for node in nodes])
    return {**values, **dict(zip(nodes, copies, strict=True))}
