"""Whether a loop does nothing for what is not hit, which it was captured for all the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import TraceError
from fxprune.trace.arguments import axis_of
from fxprune.trace.hits import origins, packet
from fxprune.trace.source import location
from fxprune.trace.storage import Memory

aten = torch.ops.aten
# Their first argument as it is, but for the rows that are written.
WRITES = {
    aten.index_add, aten.index_add_, aten.index_copy, aten.index_copy_, aten.index_put,
    aten.index_put_, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_,
}  # fmt: skip
_JOINS = {aten.cat, aten.concat, aten.concatenate}


def check(
    model: nn.Module, whole: fx.Graph, lists: Mapping[str, int], half: int, part: fx.Graph
) -> None:
    """Refuse a graph unless without half of the places it is the one with empty lists for these.

    What the model's Python does in the loop, to count or to remember, is told by this too.

    Args:
        model: for its name.
        whole: captured over all places, see :func:`~fxprune.trace.hits.everywhere`.
        lists: the lists of rows, by the symbol of their length.
        half: which places :func:`~fxprune.trace.hits.left_out` left out.
        part: captured without these.

    Raises:
        TraceError: they differ; the message names the line.
    """
    symbols = {name for name, place in lists.items() if place % 2 == half}
    if differs := overwritten(whole, lists) or _difference(emptied(whole, symbols), part):
        raise TraceError(
            f"{type(model).__name__} loops over what the data hits, and that does more than to "
            f"write the rows of each hit (at {differs}): a graph does the same for all data. Write "
            "the loop so that it adds its rows by index_add_ and nothing else, or computes all "
            "experts, and put it in before tracing"
        )


def emptied(graph: fx.Graph, symbols: Collection[str]) -> fx.Graph:
    """A copy of a graph in which lists are empty, so that their rows are not written.

    Args:
        graph: stays as it is.
        symbols: of the lengths of the lists.
    """
    copy = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        kept = left_of(node, symbols)
        copies[node] = (
            copies[kept[0]]
            if kept is not None and len(kept) == 1
            else copy.node_copy(node, copies.__getitem__)
        )
        if kept is not None and len(kept) > 1:
            copies[node].update_arg(0, [copies[each] for each in kept])
    copy.eliminate_dead_code()
    return copy


def left_of(node: fx.Node, symbols: Collection[str]) -> list[fx.Node] | None:
    """What an op that writes or joins rows comes to without those of empty lists.

    Returns:
        The values that are left, one for an op that changes nothing; None if it stays as it is.
    """
    given: Any = node.args
    if packet(node) in WRITES:
        rest = (*given[1:], *node.kwargs.values())
        operands = [each for each in pytree.tree_leaves(rest) if isinstance(each, fx.Node)]
        return given[:1] if any(_empty(each, symbols) for each in operands) else None
    if packet(node) in _JOINS:
        axis = axis_of(node, node.meta["val"].dim())
        left = [each for each in given[0] if not _empty(each, symbols, axis)]
        return left if left and len(left) < len(given[0]) else None
    return None


def overwritten(graph: fx.Graph, lists: Collection[str]) -> str | None:
    """Where a list is made of a mask that is written into: it may have been another before."""
    memory = Memory(graph)
    for node in graph.nodes:
        value = node.meta.get("val")
        listed = isinstance(value, torch.Tensor) and value.dim() and str(value.shape[0]) in lists
        if listed and any(map(memory.written, origins(node))):
            return location(node) or node.name
    return None


def _empty(node: fx.Node, symbols: Collection[str], axis: int | None = None) -> bool:
    """Whether a value has no elements (on that axis) if these sizes are 0."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    sizes = value.shape if axis is None else value.shape[axis : axis + 1]
    symbolic: list[Any] = [size for size in sizes if isinstance(size, torch.SymInt)]
    expressions = [size.node.expr for size in symbolic]
    nothing = [{s: 0 for s in each.free_symbols if str(s) in symbols} for each in expressions]
    return any(each.xreplace(zero) == 0 for each, zero in zip(expressions, nothing, strict=True))


def _difference(one: fx.Graph, other: fx.Graph) -> str | None:
    """Where two graphs begin to differ, None if they do not."""
    ours, theirs = list(_steps(one)), list(_steps(other))
    same: dict[fx.Node, fx.Node] = {}
    for mine, its in zip(ours, theirs, strict=False):
        if not _alike(mine, its, same):
            return location(mine) or location(its) or mine.name
        same[mine] = its
    rest = [*ours[len(theirs) :], *theirs[len(ours) :]]
    return location(rest[0]) or rest[0].name if rest else None


def _steps(graph: fx.Graph) -> Iterator[fx.Node]:
    """What is computed, in order; sizes and tensors of the model are found where they are used."""
    for node in graph.nodes:
        if node.op != "get_attr" and not isinstance(node.meta.get("val"), int | torch.SymInt):
            yield node


def _alike(mine: Any, its: Any, same: dict[fx.Node, fx.Node]) -> bool:
    """Whether two nodes, or arguments of nodes, are one, given the nodes that are."""
    if isinstance(mine, fx.Node) and mine in same:
        return same[mine] is its
    if not isinstance(mine, fx.Node):
        return type(mine) is type(its) and mine == its
    if not isinstance(its, fx.Node) or (mine.op, mine.target) != (its.op, its.target):
        return False
    (ours, spec), (theirs, other) = (
        pytree.tree_flatten((tuple(n.args), dict(n.kwargs)), is_leaf=_is_node) for n in (mine, its)
    )
    return spec == other and all(_alike(a, b, same) for a, b in zip(ours, theirs, strict=True))


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)
