"""Examples for a model that lost tokens: those that stay, by their old and by their new numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.proof.examples import Example, named
from fxprune.trace.arguments import argument

aten = torch.ops.aten


def kept_tokens(graph: DependencyGraph, plan: Plan) -> dict[str, torch.Tensor]:
    """The inputs that hold numbers of tokens of which some go: name to the tokens that stay.

    Args:
        graph: the groups of the original.
        plan: for it.
    """
    found: dict[str, torch.Tensor] = {}
    tables = {
        site.tensor: torch.tensor(units)
        for name, units in plan.kept.items()
        if graph[name].kind == "vocabulary"
        for site in graph[name].sites
    }
    for node in graph.traced.graph_module.graph.nodes if tables else ():
        if node.target is aten.embedding.default and str(node.args[0].target) in tables:
            source: Any = argument(node, "indices")
            while source.op != "placeholder" and source.all_input_nodes:
                source = source.all_input_nodes[0]
            if source.op == "placeholder":
                found[str(source.target)] = tables[str(node.args[0].target)]
    return found


def renumbered(
    module: fx.GraphModule, example: Example, kept: dict[str, torch.Tensor]
) -> tuple[Example, Example]:
    """An example of tokens that stay, by their old numbers and by their new ones.

    Args:
        module: the original graph, which names its inputs.
        example: for the original; tokens of it that go are replaced by some that stay.
        kept: see :func:`kept_tokens`.
    """
    if not kept:
        return example, example
    values = named(module, example.args, example.kwargs)
    nodes = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
    leaves, spec = pytree.tree_flatten(values)
    old, new = list(leaves), list(leaves)
    for place, name in enumerate(nodes):
        if name in kept:
            stay, given = kept[name].to(leaves[place].device), leaves[place]
            old[place] = torch.where(torch.isin(given, stay), given, stay[given % len(stay)])
            new[place] = torch.searchsorted(stay, old[place].contiguous())
    return _like(example, pytree.tree_unflatten(old, spec)), _like(
        example, pytree.tree_unflatten(new, spec)
    )


def _like(example: Example, values: dict[str, Any]) -> Example:
    """The same call with other values."""
    names = list(values)[: len(example.args)]
    rest = {name: value for name, value in values.items() if name not in names}
    return replace(example, args=tuple(values[name] for name in names), kwargs=rest)
