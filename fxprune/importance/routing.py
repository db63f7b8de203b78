"""Where tokens are routed: how often each expert is chosen, and what it adds to the stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxprune.axes.dims import Layout, atoms, find
from fxprune.data.calibrate import Batch
from fxprune.data.graph_inputs import graph_inputs, masks, row_count
from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.ops.choosing import JOINS
from fxprune.ops.op import find_op, packet
from fxprune.progress import track
from fxprune.trace.modes import evaluation

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Routing:
    """What a router did with the calibration tokens.

    Attributes:
        layout: of the axis of the experts.
        chosen: how many tokens each was chosen for, float64 (experts,).
        added: sum over those of the norm of what it added, its gate being a share of all gates of
            the token, float64 (experts,).
    """

    layout: Layout
    chosen: Tensor
    added: Tensor


@dataclass(frozen=True, eq=False)
class Router:
    """Where the graph of one mixture of experts has what is to be seen.

    Attributes:
        layout: of the axis of the experts.
        index: the positions of the chosen experts, (tokens, k).
        gates: what their outputs are multiplied with, (tokens, k).
        terms: the gated outputs, (tokens, k, features).
    """

    layout: Layout
    index: fx.Node
    gates: fx.Node
    terms: fx.Node


def observe_routing(
    graph: DependencyGraph, groups: Iterable[Group], data: Sequence[Batch], progress: bool
) -> dict[str, Routing]:
    """Run the traced model forward and see what its routers do.

    Args:
        graph: the groups of the model, which has its weights.
        groups: groups of experts.
        data: the calibration batches. Tokens that an attention mask hides do not count.
        progress: show a progress bar.

    Returns:
        Name of the group to what was seen.

    Raises:
        CriterionError: a group is not one of experts, or how they are run is not recognised.
    """
    traced = graph.traced
    if any(tensor.is_meta for tensor in traced.tensors.values()):
        raise CriterionError("routing is seen in the traced model, which has no weights")
    known = routers(graph, groups)
    wanted = {n for each in known.values() for n in (each.index, each.gates, each.terms)}
    totals = {
        name: [torch.zeros(r.layout.size).double() for _ in "ca"] for name, r in known.items()
    }
    with evaluation(traced.graph_module), torch.no_grad():
        for batch in track(data, "watching routers", progress):
            values = graph_inputs(traced, batch)
            seen = _Watch(traced.graph_module, wanted)
            seen.run(*values, enable_io_processing=False)
            hidden = masks(traced, values)
            for name, router in known.items():
                index, gates, terms = (
                    seen.found[n].detach() for n in (router.index, router.gates, router.terms)
                )
                norms = terms.double().norm(dim=-1) / gates.double().sum(-1, keepdim=True)
                rows = hidden.get(row_count(traced, router.index.meta["val"].shape[:1]))
                if rows is not None:
                    index, norms = index[rows], norms[rows]
                places, norms = index.reshape(-1).cpu(), norms.nan_to_num(0.0).reshape(-1).cpu()
                totals[name][0].index_add_(0, places, torch.ones_like(norms))
                totals[name][1].index_add_(0, places, norms)
    return {name: Routing(known[name].layout, *each) for name, each in totals.items()}


def routers(graph: DependencyGraph, groups: Iterable[Group]) -> dict[str, Router]:
    """The router of each group of experts, by its name.

    Raises:
        CriterionError: a group is not one of experts, or how they are run is not recognised.
    """
    return {group.name: _router(graph, group) for group in groups}


class _Watch(fx.Interpreter):
    """A run that keeps some values."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted, self.found = wanted, dict[fx.Node, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep its value if it is wanted."""
        value = super().run_node(n)
        if n in self.wanted:
            self.found[n] = value
        return value


def _router(graph: DependencyGraph, group: Group) -> Router:
    dim, inferred = find(group.dim), graph.inferred
    weights = [s for s in group.sites if s.parameter and graph.traced.tensors[s.tensor].dim() == 3]
    for node in graph.traced.graph_module.graph.nodes:
        layout = inferred.points.get((node, 0))
        if packet(node) not in {None, *JOINS} or layout is None or not weights:
            continue  # positions come out of topk as one of two outputs, or are put side by side
        same = list(atoms(layout)) == list(atoms(weights[0].layout))
        if dim in atoms(layout) and same and node.meta["val"].dim() == 2:
            found = _terms(graph, node, weights[-1].tensor)
            if found is not None:
                return Router(layout, node, *found)
    raise CriterionError(
        f"group {group.name!r} ({group.kind}) is not one of experts whose outputs can be seen one "
        "by one; score it with Taylor or Magnitude, or leave it out with kinds=..."
    )


def _terms(graph: DependencyGraph, index: fx.Node, weight: str) -> tuple[fx.Node, fx.Node] | None:
    """Gates and gated outputs: what a sum over the chosen adds up, behind the last product."""
    chosen = int(index.meta["val"].shape[1])
    nodes = list(graph.traced.graph_module.graph.nodes)
    start = next((n for n in nodes if n.op == "get_attr" and n.target == weight), None)
    behind, scaled = {start}, None
    for node in nodes:
        if behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        if packet(node) is aten.mul and scaled is None and _column(node) is not None:
            scaled = node
        terms = node.args[0] if node.args else None
        if packet(node) is aten.sum and isinstance(terms, fx.Node):
            shape = terms.meta["val"].shape
            if len(shape) == 3 and shape[1] == chosen and scaled is not None:
                gates = _gates(_column(scaled), chosen)
                return None if gates is None else (gates, terms)
    return None


def _column(node: fx.Node) -> fx.Node | None:
    """The factor that has one number for each row."""
    for each in node.all_input_nodes:
        shape = each.meta["val"].shape
        if len(shape) == 2 and shape[1] == 1 and find_op(each.target).contracts is None:
            return each
    return None


def _gates(node: fx.Node | None, chosen: int) -> fx.Node | None:
    """Back from a column of gates to where they stand in rows of as many as are chosen."""
    while node is not None:
        shape = node.meta["val"].shape
        if len(shape) == 2 and shape[1] == chosen:
            return node
        source = node.args[0] if node.args else None
        node = source if isinstance(source, fx.Node) else None
    return None
