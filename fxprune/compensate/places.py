"""Where the tensors of the original are in the smaller graph."""

from __future__ import annotations

from torch import fx, nn

from fxprune.compensate.reasons import turns
from fxprune.trace.traced import Traced


def readers(traced: Traced, small: fx.GraphModule) -> dict[str, fx.Node]:
    """Canonical name of a weight to the node that uses it in the smaller graph."""
    found: dict[str, fx.Node] = {}
    for node in small.graph.nodes:
        if node.op == "call_module":
            path = str(node.target).partition("@")[0]
            for leaf in small.get_submodule(str(node.target))._parameters:
                found[traced.canonical(f"{path}.{leaf}")] = node
        elif node.op == "get_attr":
            for user in node.users:
                found[str(node.target)] = next(iter(user.users)) if turns(user) else user
    return found


def place(traced: Traced, small: fx.GraphModule, node: fx.Node, name: str) -> tuple[nn.Module, str]:
    """The module, and the name in it, of a tensor that a node of the smaller graph reads."""
    if node.op == "call_module":
        module = small.get_submodule(str(node.target))
        path = str(node.target).partition("@")[0]
        for leaf in module._parameters:
            if traced.canonical(f"{path}.{leaf}") == name:
                return module, leaf
    path, _, leaf = name.rpartition(".")
    return small.get_submodule(path), leaf
