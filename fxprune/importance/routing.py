"""Where tokens are routed: how often each expert is chosen, and what it adds to the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxprune.axes.dims import Layout, atoms, find
from fxprune.data.calibrate import Batch
from fxprune.data.graph_inputs import Masks, graph_inputs, masks, row_count
from fxprune.errors import CriterionError
from fxprune.groups.consumers import stack_in
from fxprune.groups.group import Group
from fxprune.groups.stacked import Stack
from fxprune.ops.choosing import JOINS
from fxprune.ops.op import find_op, packet
from fxprune.progress import track
from fxprune.trace.arguments import axes_of
from fxprune.trace.modes import evaluation
from fxprune.trace.traced import Traced

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
            the token, float64 (experts,). Where a gate scales what goes into the expert, of what
            comes out.
        given: the same without gates, where these scale what comes out.
    """

    layout: Layout
    chosen: Tensor
    added: Tensor
    given: Tensor

    @staticmethod
    def none(layout: Layout) -> Routing:
        """Nothing yet."""
        return Routing(layout, *(torch.zeros(layout.size).double() for _ in "cag"))


@dataclass(frozen=True, eq=False)
class Router:
    """Where the graph of one mixture of experts has what is to be seen.

    Attributes:
        layout: of the axis of the experts.
        terms: what the experts add, (tokens, k, features), or (experts, tokens, features).
        gates: what scales it, (tokens, k); None where nothing does.
        index: the positions of the chosen experts, (tokens, k).
        stack: where every token goes into every expert, times 0 if it was not chosen, the first
            product of the experts.
    """

    layout: Layout
    terms: fx.Node
    gates: fx.Node | None
    index: fx.Node | None = None
    stack: Stack | None = None

    def keeps(self) -> dict[fx.Node, Callable[[Tensor], Tensor]]:
        """What has to be kept of which values."""
        found: dict[fx.Node, Callable[[Tensor], Tensor]] = {self.terms: _norms}
        found |= {
            node: torch.Tensor.detach for node in (self.gates, self.index) if node is not None
        }
        if (stack := self.stack) is not None:
            found[stack.source] = lambda x: stack.experts(stack.rows(x.detach()), {})
        return found


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
    keeps = {node: keep for each in known.values() for node, keep in each.keeps().items()}
    totals = {name: Routing.none(router.layout) for name, router in known.items()}
    with evaluation(traced.graph_module), torch.no_grad():
        for batch in track(data, "watching routers", progress):
            values = graph_inputs(traced, batch)
            seen = _Watch(traced.graph_module, keeps)
            seen.run(*values, enable_io_processing=False)
            hidden = masks(traced, values)
            for name, router in known.items():
                add_routed(totals[name], router, seen.found, traced, hidden)
    return totals


def add_routed(
    totals: Routing,
    router: Router,
    seen: Mapping[fx.Node, Tensor],
    traced: Traced,
    hidden: Masks,
) -> None:
    """Add what was seen in one batch to the sums by expert.

    Args:
        totals: the sums.
        router: the router.
        seen: what was kept of each of its :meth:`Router.keeps`.
        traced: the model.
        hidden: which tokens count.
    """
    norms = seen[router.terms]
    if router.stack is not None:
        experts = seen[router.stack.source].view(norms.shape).T
        norms, tokens = norms.T, router.terms.meta["val"].shape[1:2]
    else:
        assert router.index is not None
        experts, tokens = seen[router.index], router.index.meta["val"].shape[:1]
    added = given = norms
    if router.gates is not None:
        gates = seen[router.gates].double()
        added, given = norms / gates.sum(-1, keepdim=True), norms / gates.abs()
    rows = hidden.get(row_count(traced, tokens))
    if rows is not None:
        experts, added, given = experts[rows], added[rows], given[rows]
    places = experts.reshape(-1).cpu()
    met = places < len(totals.chosen)
    sums = totals.chosen, totals.added, totals.given
    for total, each in zip(sums, (torch.ones_like(added), added, given), strict=True):
        total.index_add_(0, places[met], each.nan_to_num(0.0, 0.0).reshape(-1).cpu()[met])


def _norms(terms: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(terms.detach().double(), dim=-1)
    return norms


def routers(graph: DependencyGraph, groups: Iterable[Group]) -> dict[str, Router]:
    """The router of each group of experts, by its name.

    Raises:
        CriterionError: a group is not one of experts, or how they are run is not recognised.
    """
    return {group.name: _router(graph, group) for group in groups}


class _Watch(fx.Interpreter):
    """A run that keeps something of some values."""

    def __init__(
        self, module: fx.GraphModule, keeps: Mapping[fx.Node, Callable[[Tensor], Tensor]]
    ) -> None:
        super().__init__(module)
        self.keeps, self.found = keeps, dict[fx.Node, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep what is wanted of its value."""
        value = super().run_node(n)
        if n in self.keeps:
            self.found[n] = self.keeps[n](value)
        return value


def _router(graph: DependencyGraph, group: Group) -> Router:
    dim, inferred = find(group.dim), graph.inferred
    weights = [s for s in group.sites if s.parameter and graph.traced.tensors[s.tensor].dim() == 3]
    nodes = list(graph.traced.graph_module.graph.nodes) if weights else []
    for node in nodes:
        layout = inferred.points.get((node, 0))
        if packet(node) not in {None, *JOINS} or layout is None:
            continue  # positions come out of topk as one of two outputs, or are put side by side
        same = list(atoms(layout)) == list(atoms(weights[0].layout))
        if dim in atoms(layout) and same and node.meta["val"].dim() == 2:
            found = _terms(nodes, weights[-1].tensor, 1, int(node.meta["val"].shape[1]))
            if found is not None:
                return Router(layout, *found, index=node)
    names = {site.tensor for site in weights}
    stacks = [s for n in nodes if (s := stack_in(graph.traced, n)) and s.weight.target in names]
    if stacks and stacks[0].by is None:
        found = _terms(nodes, str(stacks[-1].weight.target), 0, stacks[0].size)
        # An output that is scaled may be so for every expert, chosen or not.
        if found is not None and found[1] is None:
            return Router(weights[0].layout, *found, stack=stacks[0])
    raise CriterionError(
        f"group {group.name!r} ({group.kind}) is not one of experts whose outputs can be seen one "
        "by one; score it with Taylor or Magnitude, or leave it out with kinds=..."
    )


def _terms(
    nodes: list[fx.Node], weight: str, axis: int, count: int
) -> tuple[fx.Node, fx.Node | None] | None:
    """Behind the last product what a sum over experts adds up, and the gates that scale it."""
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
            if len(shape) == 3 and shape[axis] == count and axes_of(node, 3) == [axis]:
                gates = None if scaled is None else _gates(_column(scaled), count)
                return None if scaled is not None and gates is None else (terms, gates)
    return None


def _column(node: fx.Node) -> fx.Node | None:
    """The factor that has one number for each row."""
    for each in node.all_input_nodes:
        shape = each.meta["val"].shape
        alike = len(shape) in (2, node.meta["val"].dim())
        if alike and shape[-1] == 1 and find_op(each.target).contracts is None:
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
