"""A graph in pieces that run one after another, cut where the residual stream crosses alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from fxprune.branches import hierarchy
from fxprune.branches.find import find_branches
from fxprune.branches.reach import is_size
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.storage import Memory, mutates, targets
from fxprune.trace.traced import Traced


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a graph.

    Attributes:
        name: the path of the block that it is, or where it lies between blocks.
        module: takes the values of ``reads`` and gives those of ``gives`` as a tuple; the last
            piece gives what the graph does, flat.
        reads: inputs of the graph, and what earlier pieces gave, as nodes of the whole graph.
        gives: what later pieces read of it.
        tensors: canonical names of the parameters, buffers and constants that it reads.
        origins: its nodes to those of the whole graph.
        writes: whether an op of it writes into memory, perhaps of what it reads.
    """

    name: str
    module: fx.GraphModule
    reads: tuple[fx.Node, ...]
    gives: tuple[fx.Node, ...]
    tensors: tuple[str, ...]
    origins: Mapping[fx.Node, fx.Node]
    writes: bool


@dataclass(frozen=True, eq=False)
class Pieces(Sequence[Piece]):
    """All pieces of a traced model, in the order in which they run.

    Attributes:
        traced: the model.
        pieces: one or more.
        writes: whether ops of the graph write into inputs or tensors of the model, so that no cut
            is possible.
    """

    traced: Traced
    pieces: tuple[Piece, ...]
    writes: bool = False

    def __getitem__(self, place: Any) -> Any:
        return self.pieces[place]

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def last(self) -> Mapping[fx.Node, int]:
        """The number of the last piece that reads what an earlier one gave."""
        given = {node for piece in self.pieces for node in piece.gives}
        read = enumerate(self.pieces)
        return {node: place for place, piece in read for node in piece.reads if node in given}

    @cached_property
    def where(self) -> Mapping[fx.Node, int]:
        """The number of the piece that computes a node; the first, if several do."""
        found: dict[fx.Node, int] = {}
        for place, piece in enumerate(self.pieces):
            for node in piece.origins.values():
                found.setdefault(node, place)
        return found

    def output(self, flat: Any) -> Any:
        """What the graph gives, made of what its last piece gives."""
        return self.traced.graph_module.graph._codegen.process_outputs(flat)

    def __str__(self) -> str:
        module = type(self.traced.module).__name__
        if len(self) == 1:
            why = (
                "it writes into its inputs or buffers"
                if self.writes
                else ("there is no place between its parts where a single tensor crosses")
            )
            return f"{module} is one piece: {why}"
        return f"{module} in {len(self)} pieces: {', '.join(piece.name for piece in self)}"


def pieces_of(traced: Traced) -> Pieces:
    """Cut a traced model at the borders of its blocks.

    A cut is where one tensor, the stream, goes from all that ran to all that will. Two kinds of
    values may cross beside it. What depends on no weight (masks, rotary embeddings) is computed
    again by every piece that reads it: of the inputs, which are at hand anyway, so nothing is kept
    for it. What does (the output of an encoder, a position bias) is kept from the piece that makes
    it to the last that reads it, if several blocks do; numbers, such as sizes, are kept always.

    Blocks are the modules that residual branches lie in (:func:`find_branches`), and what lies
    before, between and after them makes pieces too. Where there are no such branches, or the graph
    does not say of which module a node is, the cuts are all places where nothing but one tensor
    crosses. What reads no parameter belongs to what is before it. A model without any such place
    is one piece.

    The pieces share their tensors with the model, and work on ``meta`` models. They compute, one
    after the other, bit for bit what the graph does. The result is kept with the traced model.
    """
    known: tuple[object, Pieces] | None = traced.cache.get("pieces")
    if known is None or known[0] is not traced.guards:  # the first piece checks by them
        known = traced.cache["pieces"] = traced.guards, _Cutter(traced).cut()
    return known[1]


class _Cutter:
    """Finds the cuts of a graph, and copies its nodes into pieces."""

    def __init__(self, traced: Traced) -> None:
        found = find_branches(traced)  # it may take ops apart, so it comes first
        self.traced = traced
        self.nodes = list(traced.graph_module.graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.memory = Memory(traced.graph_module.graph)
        self.written: dict[fx.Node, list[int]] = {}
        for node, place in self.place.items():
            for target in targets(node):
                self.written.setdefault(self.memory.root(target), []).append(place)
        self.apart = self._without_weights()
        self.own = [n for n in self.nodes if n not in self.apart and n.op != "output"]
        names = {name.rpartition(":")[0] for name in (*found.units, *found.refused)}
        blocks = hierarchy.inside(self.own, names - {""})
        self.strict = not any(blocks.values())
        self.segments = self._segments(blocks)
        self.segment = {n: i for i, (_, inside) in enumerate(self.segments) for n in inside}
        self.segment[self.nodes[-1]] = len(self.segments)

    def cut(self) -> Pieces:
        """The pieces."""
        parts: list[tuple[str, list[fx.Node]]] = []
        for name, nodes in self._stretches():
            if parts and not (self._weighs(nodes) and self._weighs(parts[-1][1])):
                before = parts.pop()
                name, nodes = before[0] or name, [*before[1], *nodes]
            parts.append((name, nodes))
        inside = [set(nodes) for _, nodes in parts]
        inside[-1].add(self.nodes[-1])
        made = (self._piece(_named(parts, i), i, inside) for i in range(len(parts)))
        return Pieces(self.traced, tuple(made), self._writes_outside())

    def _stretches(self) -> Iterator[tuple[str, list[fx.Node]]]:
        """The nodes between cuts, with the path of the first block among them."""
        name, nodes = "", list[fx.Node]()
        alive: list[fx.Node] = []
        for block, inside in self.segments:
            name, nodes = name or block, [*nodes, *inside]
            end = self.place[inside[-1]]
            alive = [
                node
                for node in (*alive, *inside)
                if any(self.place[user] > end for user in node.users)
            ]
            if self._may_cut([node for node in alive if not is_size(node)], end):
                yield name, nodes
                name, nodes = "", []
        yield name, nodes  # all else, for there is no cut behind the last segment

    def _without_weights(self) -> set[fx.Node]:
        """The nodes whose values depend on no parameter, nor on memory that is written to.

        Sizes are numbers, and what is made of them depends on nothing else.
        """
        found: set[fx.Node] = set()
        tensors = self.traced.tensors
        for node in self.nodes:
            if node.op == "get_attr":
                if not isinstance(tensors.get(str(node.target)), nn.Parameter):
                    found.add(node)
            elif node.op == "placeholder":
                found.add(node)
            elif node.op == "call_function" and node.users and not self.memory.written(node):
                read = [s for s in node.all_input_nodes if not is_size(s)]
                if all(source in found for source in read) and not mutates(node):
                    found.add(node)
        # A size of what is not computed again is a number to keep.
        for node in self.nodes:
            if (
                node in found
                and is_size(node)
                and any(s not in found for s in node.all_input_nodes)
            ):
                found.discard(node)
        return found - {n for n in found if n.op == "get_attr" and self.memory.written(n)}

    def _segments(self, blocks: Mapping[fx.Node, str]) -> list[tuple[str, list[fx.Node]]]:
        """Nodes that no cut may part, with the path of the block that they are, in order."""
        found: list[tuple[str, list[fx.Node]]] = []
        for node in self.own:
            if node.op == "get_attr":
                continue
            if found and not self.strict and found[-1][0] == blocks[node]:
                found[-1][1].append(node)
            else:
                found.append((blocks[node], [node]))
        return found

    def _weighs(self, nodes: Collection[fx.Node]) -> bool:
        tensors = self.traced.tensors
        read = (s for n in nodes for s in n.all_input_nodes if s.op == "get_attr")
        return any(isinstance(tensors.get(str(s.target)), nn.Parameter) for s in read)

    def _may_cut(self, crossing: Sequence[fx.Node], end: int) -> bool:
        """Whether a graph may be cut where some values cross, behind a place in it."""
        if not crossing or not all(map(_is_tensor, crossing)) or self._writes_outside():
            return False
        *others, _ = crossing
        if self.strict and others:
            return False
        if any(self._torn(node, crossing, end) for node in crossing):
            return False
        return all(map(self._shared, others))

    def _torn(self, node: fx.Node, crossing: Sequence[fx.Node], end: int) -> bool:
        """Whether something else than the result of a write has to be read behind the write."""
        root = self.memory.root(node)
        later = [place for place in self.written.get(root, ()) if place > end]
        alike = [each for each in crossing if self.memory.root(each) is root]
        last = max(self.place[user] for user in node.users)
        return bool(later) and (len(alike) > 1 or last > later[0])

    def _shared(self, node: fx.Node) -> bool:
        """Whether several segments read a value, the one that makes it perhaps among them."""
        readers = {self.segment[user] for user in node.users if user in self.segment}
        return len(readers) > 1

    def _writes_outside(self) -> bool:
        """Whether ops write into inputs or tensors of the model."""
        given = (node for node in self.nodes if node.op in ("get_attr", "placeholder"))
        return any(self.memory.root(node) in self.written for node in given)

    def _piece(self, name: str, number: int, inside: Sequence[Collection[fx.Node]]) -> Piece:
        mine, last = inside[number], number == len(inside) - 1
        later = {n for each in inside[number + 1 :] for n in self._needed(each)}
        gives = () if last else tuple(n for n in self.own if n in mine and n in later)
        needed = self._needed(mine)
        graph, nodes, reads = fx.Graph(), dict[fx.Node, fx.Node](), list[fx.Node]()
        for node in self.nodes:
            given = node.op == "placeholder" or (node not in mine and node not in self.apart)
            if node in needed and given and node.op != "get_attr":
                nodes[node] = graph.placeholder(node.name)
                nodes[node].meta = dict(node.meta)
                reads.append(node)
        tensors: dict[str, None] = {}
        root = nn.Module()
        for node in self.nodes:
            if node not in needed or node in nodes or node.op == "output":
                continue
            nodes[node] = graph.node_copy(node, lambda n: nodes[n])
            nodes[node].meta = dict(node.meta)
            if node.op == "get_attr":
                target = str(node.target)
                value = self.traced.tensors.get(target)
                if value is not None:
                    tensors[target] = None
                else:
                    value = get_attribute(self.traced.graph_module, target)
                set_attribute(root, target, value)
        output: Any = self.nodes[-1].args[0]
        graph.output(
            fx.map_arg(output, lambda n: nodes[n]) if last else tuple(nodes[n] for n in gives)
        )
        module = fx.GraphModule(root, graph, class_name="Piece")
        module.graph.lint()
        return Piece(
            name,
            module,
            tuple(reads),
            gives,
            tuple(tensors),
            {mine: whole for whole, mine in nodes.items()},
            any(mutates(node) for node in nodes),
        )

    def _needed(self, mine: Collection[fx.Node]) -> set[fx.Node]:
        """Some nodes, what is computed again for them, and what they read of others."""
        found = set(mine)
        pending = list(mine)
        while pending:
            for source in pending.pop().all_input_nodes:
                if source not in found:
                    found.add(source)
                    if source in self.apart:
                        pending.append(source)
        return found


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _named(parts: Sequence[tuple[str, Any]], number: int) -> str:
    """The block that a piece is, or what it lies between."""
    if name := parts[number][0]:
        return name
    before = next((name for name, _ in reversed(parts[:number]) if name), None)
    after = next((name for name, _ in parts[number + 1 :] if name), None)
    words: Iterator[str] = (
        f"{word} {name}" for word, name in (("after", before), ("before", after)) if name
    )
    return " and ".join(words) or f"piece {number + 1}"
