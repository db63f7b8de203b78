"""The parameters that one token meets: of experts as many as a router chooses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from math import prod
from typing import TYPE_CHECKING, Any

from torch import fx

from fxprune.axes import dims
from fxprune.axes.dims import Dim
from fxprune.axes.positions import kept_size
from fxprune.groups.parameters import count_parameters, remaining_shapes
from fxprune.ops.choosing import grouped
from fxprune.ops.op import find_op
from fxprune.ops.taken import select
from fxprune.trace.arguments import axis_of

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def active_parameters(graph: DependencyGraph, counts: Mapping[Dim, int] | None = None) -> int:
    """Number of parameters that are active for a token; all of them in a model without experts.

    Weights that are stacked over experts count as often as experts are chosen; what scores them,
    the router, counts whole.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        counts: units that stay, by dim; a dim that is absent keeps all.
    """
    total, kept = count_parameters(graph, counts), counts or {}
    chosen: dict[Dim, tuple[int, int]] = {}
    # Where groups are chosen first, what counts is the choice among all of their experts.
    choices = [(list(dims.atoms(layout)), layout, k) for layout, k in graph.inferred.least]
    for inner, layout, least in sorted(choices, key=lambda each: len(each[0])):
        for dim in inner:
            chosen[dim] = (least, kept_size(layout, kept))
    scoring = _multiplied(graph, chosen.keys())
    for name in remaining_shapes(graph).keys() & graph.layouts.keys():
        layouts = graph.layouts[name]
        if len(layouts) < 2:  # a bias of scores
            continue
        found = next((chosen[dim] for dim in dims.atoms(layouts[0]) if dim in chosen), None)
        if found is not None and name not in scoring:
            size = prod(kept_size(layout, kept) for layout in layouts)
            total -= size - size // found[1] * min(found)
    return total


def _multiplied(graph: DependencyGraph, chosen: Set[Dim]) -> set[str]:
    """The tensors that are multiplied as a whole, with none of these chosen of them before."""
    found = set()
    for node in graph.traced.graph_module.graph.nodes:
        reached = [node] if node.op == "get_attr" else []
        while reached:
            value = reached.pop()
            for user in value.users:
                op = find_op(user.target)
                if op.rule is select and not chosen.isdisjoint(_taken_of(graph, value, user)):
                    continue  # in a loop over experts
                if op.contracts and op.rule is not grouped:
                    found.add(str(node.target))
                elif len(user.all_input_nodes) == 1 and not op.contracts:
                    reached.append(user)
    return found


def _taken_of(graph: DependencyGraph, value: fx.Node, user: fx.Node) -> Iterator[Dim]:
    """The dims of the axis of which one place is taken."""
    axes: Any = graph.inferred.axes[value]
    return dims.atoms(axes[axis_of(user, len(axes))])
