"""What a rule may read and say while the graph is walked."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.axes import dims
from fxprune.axes.dims import Axes, Dim, Layout
from fxprune.trace.sizes import Sizes
from fxprune.trace.source import location

Fan = Literal["one", "all"]


@dataclass(frozen=True)
class Link:
    """Neurons of one value feed neurons of another (``data``), or must keep equal index sets.

    ``fan`` is ``one`` where neuron k feeds neuron k and ``all`` for a dense contraction.
    """

    source: fx.Node
    source_layout: Layout
    target: fx.Node
    target_layout: Layout
    fan: Fan
    data: bool = True


@dataclass(frozen=True)
class Pointer:
    """Positions on an axis of a value, such as those of the experts that a router chose.

    Attributes:
        layout: of the axis.
        source: the value that was chosen from.
        count: how many are chosen from it.
    """

    layout: Layout
    source: fx.Node
    count: int


@dataclass(frozen=True, eq=False)
class Inferred:
    """Axes of every value of a traced graph, resolved.

    Attributes:
        axes: FX node to the layout of each axis (a list of such tuples for several outputs).
        tensors: canonical FQN to the layout of each axis of the tensor.
        tags: structural facts, (layout, tag).
        links: neuron flows that rules stated.
        notes: layouts behind integer arguments that are not output sizes.
        derived: values computed from parameters alone, such as a transposed weight.
        intermediate: output leaves (by position) that may come out at the pruned size.
        points: integer values that are positions on a layout, such as the experts that a router
            chose: by node, and by place among the outputs of an op with several.
        least: layouts of which so many units have to stay.
        lists: axis and place of units whose rows are listed, by the symbol of how many rows: none
            once the unit is gone.
    """

    axes: dict[fx.Node, Axes | list[Axes]]
    tensors: dict[str, Axes]
    tags: list[tuple[Layout, str]]
    links: list[Link]
    notes: dict[tuple[fx.Node, str], Layout]
    derived: set[fx.Node]
    intermediate: frozenset[int]
    points: dict[tuple[fx.Node, int], Layout]
    least: list[tuple[Layout, int]]
    lists: dict[str, tuple[Layout, int]] = field(default_factory=dict)


@dataclass
class Context:
    """State of one inference, and the vocabulary in which rules speak.

    Attributes:
        axes: layouts of each axis of every tensor value (a list for ops with several outputs).
        tags: structural facts about layouts, which later give groups their kind.
        links: flows that rules state themselves; other ops' flows follow from shared dims.
        notes: layouts behind integer arguments that are not output sizes, such as ``groups``.
        derived: values computed from parameters alone (a transposed weight, say).
        learned: values that parameters go into, as numbers: a key does, a padding mask does not.
        points: integer values that are positions on a layout, by node and place of output.
        copies: values whose units serve several times, as repeated keys do.
        counts: values that are zero at each unit that nothing points to: how often each is chosen.
        least: layouts of which so many units have to stay.
        unless_chosen: layouts that are frozen, with the reason, unless their units are chosen from.
        taken: values that are one place of an axis of weights or counts: the axis, and the place.
        lists: axis and place of units whose rows are listed, by the symbol of how many rows.
    """

    sizes: Sizes
    axes: dict[fx.Node, Axes | list[Axes]] = field(default_factory=dict)
    tags: list[tuple[Layout, str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    notes: dict[tuple[fx.Node, str], Layout] = field(default_factory=dict)
    derived: set[fx.Node] = field(default_factory=set)
    learned: set[fx.Node] = field(default_factory=set)
    points: dict[tuple[fx.Node, int], Pointer] = field(default_factory=dict)
    copies: set[fx.Node] = field(default_factory=set)
    counts: set[fx.Node] = field(default_factory=set)
    least: list[tuple[Layout, int]] = field(default_factory=list)
    unless_chosen: list[tuple[Layout, str]] = field(default_factory=list)
    taken: dict[fx.Node, tuple[Layout, int]] = field(default_factory=dict)
    lists: dict[str, tuple[Layout, int]] = field(default_factory=dict)

    def pointed(self, node: Any) -> Pointer | None:
        """Where the positions lead that an integer value holds; None if it is not known to."""
        return self.points.get((node, 0)) if isinstance(node, fx.Node) else None

    def choose(self, node: fx.Node, layout: Layout, count: int, place: int) -> None:
        """State that so many units of an axis are chosen, if their positions are made use of.

        What is chosen one after the other is not chosen twice, so as many stay together.

        Args:
            node: the op that chooses, from its first argument.
            layout: of the axis.
            count: how many.
            place: of the positions among the outputs.
        """
        source: Any = node.args[0]
        several = isinstance(node.meta["val"], list | tuple)
        picked = [
            each
            for each in (node.users if several else [node])
            if not several or (each.target is operator.getitem and each.args[1] == place)
        ]
        if not any(each.users for each in picked):
            self.least.append((layout, count))
            return
        same = {p for p in self.points.values() if [*dims.atoms(p.layout)] == [*dims.atoms(layout)]}
        pointer = Pointer(layout, source, count)
        self.points[node, place] = pointer
        self.least.append((layout, sum(p.count for p in {*same, pointer})))
        self.tag(layout, "chosen")

    def look_up(self, value: fx.Node, axis: int, index: Any, what: str, node: fx.Node) -> None:
        """State that units of an axis are looked up by an index.

        Positions on the axis itself stay right as it shrinks; any other index freezes it.
        """
        layout, pointer = self.of(value)[axis], self.pointed(index)
        if pointer is None:
            self.freeze(layout, what, node)
        else:
            self.unify(layout, pointer.layout, node)
            self.align(pointer.source, pointer.layout, value, layout)

    def of(self, node: Any) -> Axes:
        """Layouts of a tensor argument's axes."""
        axes = self.axes[node]
        assert isinstance(axes, tuple)
        return axes

    def shape(self, value: fx.Node | torch.Tensor) -> tuple[tuple[int, bool], ...]:
        """Each axis as (size, whether it is symbolic); a symbolic size is a stand-in number."""
        tensor = value.meta["val"] if isinstance(value, fx.Node) else value
        return self.sizes.shape(tensor)

    def sizes_of(self, value: fx.Node | torch.Tensor) -> tuple[int, ...]:
        """The sizes alone."""
        return tuple(size for size, _ in self.shape(value))

    def fresh(self, value: fx.Node | torch.Tensor, reason: str | None = None) -> Axes:
        """A new dim for each axis of a value, frozen if a reason is given."""
        return tuple(Dim(size, free, reason) for size, free in self.shape(value))

    def unify(self, a: Layout, b: Layout, node: fx.Node) -> bool:
        """State that two layouts are one axis; a clash freezes both, naming the op."""
        return dims.unify(a, b, self.why("axes that do not align", node))

    def freeze(self, layout: Layout, what: str, node: fx.Node) -> None:
        """Forbid pruning a layout; the reason names the op and the source line."""
        dims.freeze(layout, self.why(what, node))

    def tag(self, layout: Layout, tag: str) -> None:
        """Record a structural fact."""
        self.tags.append((layout, tag))

    def copied(self, layout: Layout, source: Any, node: fx.Node) -> None:
        """Record that units of ``source`` serve several times, as a key serves several queries.

        A mask that is expanded over heads makes nothing of them.
        """
        if source in self.learned:
            self.tag(layout, "repeat")
            self.copies.add(node)

    def why(self, what: str, node: fx.Node) -> str:
        """A reason with the op and where it stands."""
        place = location(node)
        op = str(node.target).removesuffix(".default") if node.op == "call_function" else node.op
        text = what if op.split(".")[-1] in what or op in what else f"{what} ({op})"
        return f"{text} at {place}" if place else text

    def broadcast(self, node: fx.Node, operands: list[fx.Node], rank: int) -> Axes:
        """Unify the operands' axes from the right, as broadcasting does; sizes of 1 stand back."""
        out: list[Layout] = []
        for back in range(rank, 0, -1):
            merged: Layout = dims.ONE
            for operand in operands:
                axes = self.of(operand)
                if len(axes) < back or axes[-back].size == 1:
                    continue
                if merged.size == 1:
                    merged = axes[-back]
                else:
                    self.unify(merged, axes[-back], node)
            out.append(merged)
        return tuple(out)

    def activation(self, node: Any) -> bool:
        """Whether a value depends on the model's inputs rather than on parameters alone."""
        return isinstance(node, fx.Node) and node not in self.derived

    def opaque(self, node: fx.Node, what: str) -> Axes:
        """Axes of an op that cannot be followed: its operands and its result are frozen."""
        for operand in node.all_input_nodes:
            for layout in pytree.tree_leaves(self.axes.get(operand, ())):
                self.freeze(layout, what, node)
        return self.fresh(node, self.why(what, node))

    def flow(
        self,
        source: fx.Node,
        layout: Layout,
        target: fx.Node,
        fan: Fan = "one",
        to: Layout | None = None,
    ) -> None:
        """State that a layout of ``source`` feeds ``to`` (the same layout if left out)."""
        self.links.append(Link(source, layout, target, layout if to is None else to, fan))

    def align(self, a: fx.Node, layout: Layout, b: fx.Node, other: Layout) -> None:
        """State that two operands of a contraction must keep equal index sets."""
        self.links.append(Link(a, layout, b, other, "one", data=False))
