"""Products with stacked weights: which matrix of the stack each row of the activation meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops.choosing import GROUPED
from fxprune.ops.op import MatrixProduct, find_op, packet
from fxprune.trace.arguments import argument

aten = torch.ops.aten

_PRODUCTS = {aten.bmm, aten.matmul, aten.baddbmm}
_TURNS = {aten.transpose, aten.permute, aten.mT}
PICKS = {aten.index, aten.index_select}

Values = Mapping[fx.Node, Any]
Weight = Callable[[object], bool]


@dataclass(frozen=True, eq=False)
class Stack:
    """A product ``y = x W_e`` in a graph, each row of x with one matrix of a stack, an *expert*.

    Attributes:
        node: the product.
        weight: the stack, as it is stored.
        source: the activation ``x``.
        axis: its axis that is contracted.
        inner: the weight's axis that is contracted.
        outer: its axis of what comes out.
        by: what says which matrix each row meets: the ends of each one's rows, which are sorted
            (``ends``), or the number of each row's own. None where the first axis of x does.
        ends: see ``by``.
        taken: where the matrices are taken out of the stack, one for each row, the ops that do it.
        expert: the one that all rows meet, where a product is of one alone.
    """

    node: fx.Node
    weight: fx.Node
    source: fx.Node
    axis: int
    inner: int
    outer: int
    by: fx.Node | None = None
    ends: bool = False
    taken: tuple[fx.Node, ...] = ()
    expert: int | None = None

    def rows(self, x: Tensor) -> Tensor:
        """The activation as a matrix (rows, inputs)."""
        if self.by is None and self.expert is None:
            x = x.expand(self.size, *x.shape[-2:])
        x = x.movedim(self.axis, -1)
        return x.reshape(-1, x.shape[-1])

    def results(self, y: Tensor) -> Tensor:
        """What comes out as a matrix (rows, outputs)."""
        y = y.movedim(self.axis, -1)
        return y.reshape(-1, y.shape[-1])

    def matrix(self, weight: Tensor, expert: int) -> Tensor:
        """The matrix of one expert as (outputs, inputs)."""
        return weight[expert] if self.outer < self.inner else weight[expert].T

    @property
    def size(self) -> int:
        """Number of experts."""
        return int(self.weight.meta["val"].shape[0])

    @property
    def broadcasts(self) -> bool:
        """Whether the activation has no axis of its own for the experts, which all meet it."""
        shape = self.source.meta["val"].shape
        every = self.by is None and self.expert is None
        return every and (len(shape) == 2 or shape[0] != self.size)

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """The whole numbers that :meth:`experts` needs."""
        return () if self.by is None else (self.by,)

    def experts(self, x: Tensor, values: Values) -> Tensor:
        """Which expert each row meets, int64 (rows,); one beyond the last for a row that none has.

        Where every token meets every expert, those that were sent to it are the rows that are not
        zero.

        Args:
            x: the activation as :meth:`rows` gives it.
            values: of :attr:`reads`.
        """
        if self.expert is not None:
            return torch.full((len(x),), self.expert, device=x.device)
        if self.by is None:
            every = torch.arange(self.size, device=x.device).repeat_interleave(len(x) // self.size)
            return every.where((x != 0).any(1), self.size)
        by: Tensor = values[self.by].to(x.device).long().reshape(-1)
        if not self.ends:
            return by.repeat_interleave(len(x) // len(by)) if len(by) else by
        return torch.bucketize(torch.arange(len(x), device=x.device), by, right=True)


def by_expert(experts: Tensor, count: int) -> list[Tensor]:
    """Places of the rows of each expert, in order.

    Args:
        experts: the expert of each row; ``count`` for a row that none has.
        count: number of experts.
    """
    order = torch.argsort(experts, stable=True)
    sizes = torch.bincount(experts, minlength=count + 1).tolist()
    return list(torch.split(order, sizes))[:count]


def stack_of(node: fx.Node, is_weight: Weight) -> Stack | None:
    """The product with a stacked weight that a node is, None if it is none.

    Args:
        node: a node of any graph.
        is_weight: whether a node reads a parameter.
    """
    if node.op != "call_function":
        return None
    op = packet(node)
    name = getattr(op, "_qualified_op_name", None)
    if op in GROUPED or name in GROUPED:
        x, weight = node.args[:2]
        ends = argument(node, "offs")
        if not isinstance(x, fx.Node) or not isinstance(ends, fx.Node):
            return None
        found = _weight(weight, is_weight)
        if found is None or found[1] is not None or dimensions(x) != 2:
            return None
        return Stack(node, found[0], x, -1, *_axes(1, found[2]), by=ends, ends=True)
    product = find_op(node.target).product
    if product is not None and (one := _of_one(node, product, is_weight)) is not None:
        return one
    if op not in _PRODUCTS:
        return None
    x, weight = node.args[-2:]
    for source, operand, inner, axis in ((x, weight, 1, -1), (weight, x, 2, -2)):
        found = _weight(operand, is_weight)
        if found is None or not isinstance(source, fx.Node) or not 1 < dimensions(source) < 4:
            continue
        stored, by, turned = found
        if by is None or dimensions(source) == 3:
            taken = () if by is None else _path(operand)
            return Stack(node, stored, source, axis, *_axes(inner, turned), by=by, taken=taken)
    return None


def _of_one(node: fx.Node, product: MatrixProduct, is_weight: Weight) -> Stack | None:
    """The product with the matrix of one expert."""
    source, matrix = argument(node, product.activation), argument(node, product.weight)
    inner, turned = product.inner, False
    while dimensions(matrix) == 2 and packet(matrix) in (aten.t, aten.transpose, aten.numpy_T):
        matrix, turned = matrix.args[0], not turned
    if dimensions(matrix) != 2 or packet(matrix) is not aten.select or dimensions(source) < 2:
        return None
    weight, axis, expert = matrix.args
    if axis != 0 or not is_weight(weight) or dimensions(weight) != 3 or not isinstance(expert, int):
        return None
    inner = 1 - inner if turned else inner
    size = weight.meta["val"].shape[0]
    return Stack(node, weight, source, -1, 1 + inner, 2 - inner, expert=expert % size)


def numbers_of(node: fx.Node) -> fx.Node | None:
    """The whole numbers, one for each row, that an op takes rows by, None if it is no such op."""
    if packet(node) not in PICKS or node.op != "call_function":
        return None
    given: Any = node.args[1:]
    numbers, first = (given[1], given[0] == 0) if len(given) == 2 else (given[0][0], True)
    if not first or (len(given) == 1 and len(given[0]) > 1) or dimensions(numbers) != 1:
        return None
    return None if numbers.meta["val"].dtype is torch.bool else numbers


def _weight(node: object, is_weight: Weight) -> tuple[fx.Node, fx.Node | None, bool] | None:
    """The stack behind an operand, the numbers it was chosen by, and whether it is turned."""
    by, turned = None, False
    while isinstance(node, fx.Node) and node.op == "call_function":
        if packet(node) in _TURNS and dimensions(node) == 3:
            if not _swaps(node):
                return None
            turned = not turned
        elif packet(node) in PICKS and by is None:
            by = numbers_of(node)
            if by is None:
                return None
        else:
            return None
        node = node.args[0]
    if not isinstance(node, fx.Node) or not is_weight(node) or dimensions(node) != 3:
        return None
    return node, by, turned


def _path(node: Any) -> tuple[fx.Node, ...]:
    return (*_path(node.args[0]), node) if node.op == "call_function" else ()


def _swaps(node: fx.Node) -> bool:
    """Whether the last two of three axes change places."""
    if packet(node) is aten.permute:
        order: Any = node.args[1]
        return [axis % 3 for axis in order] == [0, 2, 1]
    axes: Any = node.args[1:]
    return packet(node) is aten.mT or {axis % 3 for axis in axes} == {1, 2}


def _axes(inner: int, turned: bool) -> tuple[int, int]:
    inner = 3 - inner if turned else inner
    return inner, 3 - inner


def dimensions(node: object) -> int:
    """Number of axes of a value, of the first one of several."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    value = value[0] if isinstance(value, tuple | list) and value else value
    return value.dim() if isinstance(value, Tensor) else 0
