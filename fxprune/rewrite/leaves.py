"""Leaf modules come back as ``call_module`` under their own names.

The nodes that one call of a leaf module left in the graph are replaced by a call of a smaller copy
of that module, where they have one input and one result. Hooks, PEFT and quantisers then find
``q_proj`` as the ``nn.Linear`` it was.

Most of these calls can be told on the original graph, and their nodes are then never copied. The
others, whose nodes have sizes of their own to mend, are found in the rewritten graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.rewrite import recurrent, views
from fxprune.rewrite.shrink import TORCH_LEAVES, equivalent, one_op, smaller
from fxprune.trace.storage import mutates
from fxprune.trace.traced import Traced


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a leaf module.

    Attributes:
        path: FQN of the module; export calls the second use of a shared one "path@1".
        module: the original.
        names: its parameters and buffers by name, as canonical FQNs.
        nodes: what the call left in the graph.
        source: the one tensor that enters.
        result: the node whose value leaves.
    """

    path: str
    module: nn.Module
    names: Mapping[str, str]
    nodes: list[fx.Node]
    source: fx.Node
    result: fx.Node

    def smaller(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module | None:
        """A copy of the module with these tensors (by FQN), if its sizes can be told."""
        own = {name: tensors[fqn] for name, fqn in self.names.items() if fqn in tensors}
        return smaller(self.module, own, self.nodes)

    def place(self, graph: fx.Graph, source: fx.Node) -> fx.Node:
        """Write the call where the graph inserts, with the source that it has there."""
        if views.enters(self.source, self.nodes):  # a no-op, but for other strides than traced
            value = source.meta["val"]
            source = graph.call_function(torch.ops.aten.contiguous.default, (source,))
            source.meta = {"val": value}
        call = graph.create_node("call_module", self.path, (source,))
        call.meta.update(self.result.meta)
        call.meta.pop("torch_fn", None)
        return call


class _Proofs:
    """Whether calls are what their nodes compute. One proof serves all layers of alike nodes."""

    def __init__(self) -> None:
        self._known: dict[Any, bool] = {}

    def hold(self, call: Call, tensors: Mapping[str, torch.Tensor]) -> bool:
        given = [a for n in call.nodes for a in (*n.args, *n.kwargs.values())]
        constants = [repr(a) for a in given if not isinstance(a, fx.Node)]
        signature = (type(call.module), *[n.target for n in call.nodes], *constants)
        if signature not in self._known:
            small = call.smaller(tensors)
            self._known[signature] = small is not None and equivalent(
                small, call.names, call.nodes, call.source, call.result
            )
        return self._known[signature]


def ready(traced: Traced, affected: AbstractSet[fx.Node]) -> dict[fx.Node, Call]:
    """The calls that a rewritten graph can make at once, by the nodes of their results.

    Those that the plan does not touch, and those of linear layers and embeddings: one op, which
    takes its sizes from the weight.

    Args:
        traced: the original.
        affected: the nodes that the plan touches.
    """
    found: dict[fx.Node, Call] = {}
    proofs = _Proofs()
    for call in _calls(traced, traced.graph_module.graph):
        if any(map(mutates, call.nodes)) or views.shares(call.result):
            continue
        if affected.isdisjoint(call.nodes):
            if not proofs.hold(call, traced.tensors):
                continue
        elif not (_sized_by_weight(call.module) and len(call.nodes) == 1):
            continue
        found[call.result] = call
    return found


def _sized_by_weight(module: nn.Module) -> bool:
    padded = getattr(module, "padding_idx", None) is not None  # which may have another number
    return isinstance(module, nn.Linear | nn.Embedding) and one_op(module) and not padded


def restore(
    traced: Traced,
    graph: fx.Graph,
    tensors: Mapping[str, torch.Tensor],
    placed: Iterable[Call],
) -> dict[str, nn.Module]:
    """Make the modules of calls, and put a call in place of the nodes of all others.

    Args:
        traced: the original, whose modules are copied.
        graph: the rewritten graph, changed in place.
        tensors: canonical FQN to the tensor of the new size.
        placed: calls that the graph makes already.

    Returns:
        The smaller modules by the paths that the graph calls.
    """
    built: dict[str, nn.Module] = {}
    for call in placed:
        if call.path not in built:
            small = call.smaller(tensors)
            assert small is not None, call.path  # its sizes are told, or stay
            built[call.path] = small
    proofs = _Proofs()
    for call in _calls(traced, graph):
        small = built.get(call.path) or call.smaller(tensors)
        if small is None or not proofs.hold(call, tensors):
            continue
        built[call.path] = small
        with graph.inserting_before(call.result):
            call.result.replace_all_uses_with(call.place(graph, call.source))
        for node in reversed(call.nodes):
            graph.erase_node(node)
    return built | recurrent.restore(traced, _innermost(graph), tensors)


def _calls(traced: Traced, graph: fx.Graph) -> Iterator[Call]:
    """The calls of leaf modules with one tensor in and one out, in graph order."""
    modules = dict(traced.module.named_modules(remove_duplicate=False))
    for path, nodes in _innermost(graph):
        module = _leaf(modules.get(path.partition("@")[0]))
        if module is None:
            continue
        names = {
            n: traced.canonical(f"{path}.{n}") for n in (*module._parameters, *module._buffers)
        }
        ends = _ends(nodes, set(names.values()))
        if ends is not None:
            yield Call(path, module, names, nodes, *ends)


def _innermost(graph: fx.Graph) -> Iterable[tuple[str, list[fx.Node]]]:
    """Path and nodes of each innermost module call, in graph order."""
    calls: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            # The key tells the calls of a shared module apart, the path does not.
            key, (path, _) = next(reversed(stack.items()))
            if path:
                calls.setdefault(key, (path, []))[1].append(node)
    return list(calls.values())


def _leaf(module: nn.Module | None) -> nn.Module | None:
    """The module, if it has no children and is worth restoring."""
    if module is None or type(module) is nn.Module or _any(module._modules):
        return None
    has_parameters = _any(module._parameters)
    return module if has_parameters or isinstance(module, TORCH_LEAVES) else None


def _any(found: Mapping[str, object]) -> bool:
    return any(value is not None for value in found.values())


def _ends(nodes: list[fx.Node], own: set[str]) -> tuple[fx.Node, fx.Node] | None:
    """The one tensor that enters and the one that leaves, or None if there are more."""
    inside = set(nodes)
    sources = {
        source
        for node in nodes
        for source in node.all_input_nodes
        if source not in inside
        and isinstance(source.meta.get("val"), torch.Tensor)
        and not (source.op == "get_attr" and source.target in own)
    }
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(sources) != 1 or len(results) != 1:
        return None
    return sources.pop(), results[0]
