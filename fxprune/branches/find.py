"""Discovery of removable residual branches and blocks, from the graph alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from fxprune.branches import hierarchy
from fxprune.branches.reach import Flow, Reach, is_size
from fxprune.branches.sums import ResidualSum, constant, is_sum, residual_sums, same_value
from fxprune.branches.unit import KINDS, Unit
from fxprune.errors import DepthError
from fxprune.groups.decompose import decompose
from fxprune.ops.convolution import CONVOLUTIONS
from fxprune.ops.op import find_op, packet
from fxprune.ops.reduction import SOFTMAX
from fxprune.trace.sizes import form
from fxprune.trace.source import location
from fxprune.trace.traced import Traced

aten = torch.ops.aten
# Whose second operand is a weight, though it may be computed (a weight norm).
_LAYERS = {aten.linear, aten.addmm, *CONVOLUTIONS}


@dataclass(frozen=True, eq=False)
class Branches:
    """The residual branches of a model, and the blocks they form.

    Attributes:
        units: what can be removed, by name: branches and blocks, in graph order.
        refused: what looks like a unit and cannot be removed, with the reason.
        module: the model's class, for messages.
    """

    units: dict[str, Unit]
    refused: dict[str, str] = field(default_factory=dict)
    module: str = "the model"

    def __getitem__(self, name: str) -> Unit:
        """The unit of that name.

        Raises:
            DepthError: there is none, or it cannot be removed; the message says why.
        """
        if name in self.units:
            return self.units[name]
        if name in self.refused:
            raise DepthError(f"{name} cannot be removed: {self.refused[name]}")
        close = difflib.get_close_matches(name, self.units, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise DepthError(f"{self.module} has no residual branch or block {name!r}{hint}")

    def of(self, kind: str) -> tuple[Unit, ...]:
        """The units of a kind, in graph order.

        Args:
            kind: ``block``, ``attention``, ``mlp``, ``other``, or ``branch`` for every branch.

        Raises:
            DepthError: there is no such kind.
        """
        if kind not in (*KINDS, "branch"):
            raise DepthError(f"no unit {kind!r}: take {', '.join((*KINDS, 'branch'))}")
        return tuple(
            unit
            for unit in self.units.values()
            if unit.kind == kind or (kind == "branch" and unit.kind != "block")
        )


def find_branches(traced: Traced) -> Branches:
    """Find every residual branch and block of a traced model.

    A sum of the graph is residual if one of its terms, the skip, is a value (or a multiple of one
    by a number) that other terms are computed from. Such a term is a branch if it reads a weight,
    and if nothing between the stream and the term is read from elsewhere (one exit); terms that
    share a matrix, as a projection and its adapter do, are one branch. A block is what one numbered
    module of the hierarchy does to the stream, where one value of it enters, one of the same shape
    leaves, and branches lie between. No name is looked at but for numbers.

    Works on ``meta`` models. The result is kept with the traced model.
    """
    known = traced.cache.get("branches")
    if not isinstance(known, Branches):
        decompose(traced)  # units hold nodes of the graph, which is then as it stays
        known = traced.cache["branches"] = _find(traced)
    return known


def _find(traced: Traced) -> Branches:
    graph = traced.graph_module.graph
    reach = Reach(graph)
    found = [
        (each, term, region)
        for each in residual_sums(graph, reach)
        for term in each.terms
        if _reads_weights(region := reach.between(each.entry, term))
    ]
    places = hierarchy.blocks([each.node for each, _, _ in found])
    units: dict[str, Unit] = {}
    refused: dict[str, str] = {}
    members: dict[str, list[tuple[ResidualSum, str]]] = {}
    for each, term, region in found:
        place = places[each.node]
        kind = _kind(region)
        name = _free(f"{place}:{kind}", {*units, *refused})
        members.setdefault(place, []).append((each, name))
        users = [user for user in term.users if _leads_to(user, each.node)]
        dead = reach.flow.dying(term, users, each.entry)
        unread = reach.flow.dying(term, users, each.entry, sizes=True)
        # Parallel branches may share a norm, which then stays with the other.
        whole = {*reach.between(each.entry, each.node), *unread}
        reason = _exit_reason(region if dead else [term], unread, whole, reach.flow)
        if reason is None:
            units[name] = Unit(
                name,
                kind,
                place,
                each.entry,
                term,
                each.skip,
                frozenset(dead),
                _own(dead, traced),
            )
        else:
            refused[name] = reason
    for place, inside in members.items():
        name = f"{place}:block"
        made = _block(traced, reach, place, inside)
        if isinstance(made, Unit):
            units[name] = made
        else:
            refused[name] = made
    order = {node: i for i, node in enumerate(graph.nodes)}
    units = dict(sorted(units.items(), key=lambda item: order[item[1].exit]))
    return Branches(units, refused, type(traced.module).__name__)


def _block(
    traced: Traced, reach: Reach, place: str, inside: list[tuple[ResidualSum, str]]
) -> Unit | str:
    """The block at a place, or why it is none."""
    first, last = inside[0][0], inside[-1][0]
    if not place:
        return f"it is the whole model, with all from {first.entry.name} to {last.node.name}"
    nodes = set(hierarchy.within(traced.graph_module.graph, place))
    if not nodes:  # no modules are recorded: the branch is all there is
        nodes = {n for each, _ in inside for t in each.terms for n in reach.between(each.entry, t)}
        nodes |= {each.node for each, _ in inside}
    entry = _entering(first, nodes, reach, last)
    if isinstance(entry, str):
        return entry
    flow = sorted(n for n in nodes if reach.descends(n, entry) and not is_size(n))
    leaving = [n for n in flow if any(not (u in nodes or is_size(u)) for u in reach.flow.users(n))]
    if len(leaving) != 1:
        names = ", ".join(n.name for n in leaving) or "none"
        return f"one value must leave it, and these do: {names}"
    (leaves,) = leaving
    if not _alike(entry, leaves):
        return f"{entry.name} enters and {leaves.name} of another shape or dtype leaves"
    users = [user for user in leaves.users if user not in nodes]
    unread = reach.flow.dying(leaves, users, entry, sizes=True)
    kept = [node for node in flow if node not in unread and reach.descends(leaves, node)]
    if kept:
        return _used_elsewhere(kept[-1], [u for u in reach.flow.users(kept[-1]) if u not in unread])
    dead = reach.flow.dying(leaves, users, entry)
    branches = tuple(name for _, name in inside)
    own = _own(dead, traced)
    return Unit(
        f"{place}:block", "block", place, entry, leaves, entry, frozenset(dead), own, branches
    )


def _entering(
    first: ResidualSum, nodes: set[fx.Node], reach: Reach, last: ResidualSum
) -> fx.Node | str:
    """The value of the stream that enters a block, or why it cannot be told."""
    if first.entry not in nodes:
        return first.entry
    entering = {
        source
        for node in nodes
        for source in node.all_input_nodes
        if source not in nodes and source.op != "get_attr" and _alike(source, last.node)
    }
    found = [source for source in entering if reach.descends(first.entry, source)]
    if len(found) != 1:
        names = ", ".join(sorted(node.name for node in found)) or "none"
        return f"one value of the stream must enter it, and these do: {names}"
    return found[0]


def _alike(one: fx.Node, other: fx.Node) -> bool:
    mine, theirs = one.meta.get("val"), other.meta.get("val")
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    return form(mine) == form(theirs) and mine.dtype == theirs.dtype


def _reads_weights(region: Iterable[fx.Node]) -> bool:
    """Whether there is a product with a weight: a gate or an activation function has none."""
    return any(find_op(node.target).contracts and _weights(node) for node in region)


def _weights(node: fx.Node) -> list[fx.Node]:
    """The operands that come from parameters alone."""
    return [source for source in node.all_input_nodes if constant(source)]


def _kind(region: list[fx.Node]) -> str:
    packets = {packet(node) for node in region}
    mixes = [
        node
        for node in region
        if find_op(node.target).contracts and packet(node) not in _LAYERS and not _weights(node)
    ]
    if aten.scaled_dot_product_attention in packets or (packets & SOFTMAX and mixes):
        return "attention"
    return "other" if mixes or not packets.isdisjoint(CONVOLUTIONS) else "mlp"


def _leads_to(user: fx.Node, last: fx.Node) -> bool:
    """Whether a term's user is the sum, or on the term's way into it."""
    while user is not last:
        if len(user.users) != 1 or not (is_sum(user) or same_value(user)):
            return False
        (user,) = user.users
    return True


def _exit_reason(
    region: list[fx.Node], dead: set[fx.Node], whole: set[fx.Node], flow: Flow
) -> str | None:
    """Why the region of a branch has another exit than its term, or None.

    Args:
        region: the nodes from the stream to the term.
        dead: those whose values only the branch reads; none if the term has other readers.
        whole: everything between the stream and the sum.
        flow: of the graph.
    """
    for node in reversed(region):
        outside = [user for user in flow.users(node) if user not in whole]
        if node not in dead and (outside or not dead):
            return _used_elsewhere(node, outside or flow.users(node))
    return None


def _used_elsewhere(node: fx.Node, users: Sequence[fx.Node]) -> str:
    if not users:
        return f"{node.name} writes into what enters it"
    user = users[-1]
    where = location(user)
    return f"its value {node.name} is also used by {user.name}{f' at {where}' if where else ''}"


def _own(dead: set[fx.Node], traced: Traced) -> tuple[str, ...]:
    names = (str(node.target) for node in sorted(dead) if node.op == "get_attr")
    return tuple(name for name in names if isinstance(traced.tensors.get(name), torch.nn.Parameter))


def _free(name: str, taken: set[str]) -> str:
    """The name, numbered from its second use on."""
    for candidate in _numbered(name):
        if candidate not in taken:
            return candidate
    raise AssertionError


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}#{number}"
        number += 1
