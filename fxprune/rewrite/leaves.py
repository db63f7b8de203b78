"""Leaf modules come back as ``call_module`` under their own names.

The nodes that one call of a leaf module left in the graph are replaced by a call of a smaller copy
of that module, where they have one input and one result. Hooks, PEFT and quantisers then find
``q_proj`` as the ``nn.Linear`` it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.rewrite import views
from fxprune.rewrite.shrink import TORCH_LEAVES, equivalent, smaller
from fxprune.trace.attributes import set_attribute
from fxprune.trace.traced import Traced


def restore(
    traced: Traced, graph: fx.Graph, root: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Replace the nodes of every leaf module call that allows it.

    Args:
        traced: the original, whose modules are copied.
        graph: the rewritten graph, changed in place.
        root: where the smaller modules are put.
        tensors: canonical FQN to the tensor of the new size.
    """
    built: dict[str, nn.Module] = {}
    proven: dict[Any, bool] = {}
    modules = dict(traced.module.named_modules(remove_duplicate=False))
    for path, nodes in _calls(graph):
        # An exported graph calls the second use of a shared module "path@1".
        module = _leaf(modules.get(path.partition("@")[0]))
        if module is None:
            continue
        names = {
            n: traced.canonical(f"{path}.{n}") for n in (*module._parameters, *module._buffers)
        }
        ends = _ends(nodes, set(names.values()))
        if ends is None:
            continue
        copy = built.get(path) or smaller(
            module, {n: tensors[fqn] for n, fqn in names.items() if fqn in tensors}, nodes
        )
        if copy is None:
            continue
        # One proof serves every layer that made the same nodes.
        signature = (type(module), tuple(str(n.target) for n in nodes))
        if signature not in proven:
            proven[signature] = equivalent(copy, names, nodes, *ends)
        if not proven[signature]:
            continue
        if path not in built:
            built[path] = copy
            set_attribute(root, path, copy)
        _replace(graph, path, nodes, *ends)


def _replace(
    graph: fx.Graph, path: str, nodes: list[fx.Node], source: fx.Node, result: fx.Node
) -> None:
    with graph.inserting_before(result):
        if views.enters(source, nodes):  # a no-op, but for other strides than in the trace
            value = source.meta["val"]
            source = graph.call_function(torch.ops.aten.contiguous.default, (source,))
            source.meta = {"val": value}
        call = graph.create_node("call_module", path, (source,))
    call.meta = {k: v for k, v in result.meta.items() if k != "torch_fn"}
    result.replace_all_uses_with(call)
    for node in reversed(nodes):
        graph.erase_node(node)


def _calls(graph: fx.Graph) -> Iterable[tuple[str, list[fx.Node]]]:
    """Path and nodes of each innermost module call, in graph order."""
    calls: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op == "call_function" and stack:
            # The key tells the calls of a shared module apart, the path does not.
            key, (path, _) = list(stack.items())[-1]
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
