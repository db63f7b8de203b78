"""Products with stacked weights: which matrix of the stack each row of the activation meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.ops.choosing import GROUPED
from fxprune.ops.op import packet
from fxprune.trace.arguments import argument

aten = torch.ops.aten

_PRODUCTS = {aten.bmm, aten.matmul, aten.baddbmm}
_TURNS = {aten.transpose, aten.permute, aten.mT}
_PICKS = {aten.index, aten.index_select}
# Rows stay as they are; some of these move or cut the axis of the channels.
_PASSES = {
    aten.to, aten._to_copy, aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.slice,
    aten.squeeze, aten.contiguous, aten.clone, aten.detach, aten.alias, aten.dropout, aten.chunk,
    aten.split, aten.split_with_sizes, aten.narrow, aten.layer_norm, aten.rms_norm,
}  # fmt: skip
_SAME = {aten.to, aten._to_copy, aten.view, aten.reshape, aten.contiguous, aten.clone, aten.alias}

Weight = Callable[[object], bool]
Count = Callable[[fx.Node], int]
Step = tuple[str, int | fx.Node]


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
    """

    node: fx.Node
    weight: fx.Node
    source: fx.Node
    axis: int
    inner: int
    outer: int
    by: fx.Node | None = None
    ends: bool = False

    def rows(self, x: Tensor) -> Tensor:
        """The activation as a matrix (rows, inputs)."""
        if self.by is None:
            x = x.expand(self.weight.meta["val"].shape[0], *x.shape[-2:])
        x = x.movedim(self.axis, -1)
        return x.reshape(-1, x.shape[-1])

    def results(self, y: Tensor) -> Tensor:
        """What comes out as a matrix (rows, outputs)."""
        y = y.movedim(self.axis, -1)
        return y.reshape(-1, y.shape[-1])

    def tensor(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`results`."""
        return rows.reshape(like.movedim(self.axis, -1).shape).movedim(-1, self.axis)

    def matrix(self, weight: Tensor, expert: int) -> Tensor:
        """The matrix of one expert as (outputs, inputs)."""
        return weight[expert] if self.outer < self.inner else weight[expert].T

    def experts(self, x: Tensor, by: Tensor | None) -> Tensor:
        """Which expert each row meets, int64 (rows,); one beyond the last for a row that none has.

        Where every token meets every expert, those that were sent to it are the rows that are not
        zero.

        Args:
            x: the activation as :meth:`rows` gives it.
            by: the value of :attr:`by`.
        """
        count = int(self.weight.meta["val"].shape[0])
        if self.by is None:
            every = torch.arange(count, device=x.device).repeat_interleave(len(x) // count)
            return every.where((x != 0).any(1), every.new_tensor(count))
        assert by is not None
        if not self.ends:
            return by.reshape(-1).long()
        places = torch.arange(len(x), device=x.device)
        return torch.bucketize(places, by.long().to(x.device), right=True)


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
        if found is None or found[1] is not None or _dims(x) != 2:
            return None
        return Stack(node, found[0], x, -1, *_axes(1, found[2]), by=ends, ends=True)
    if op not in _PRODUCTS:
        return None
    x, weight = node.args[-2:]
    for source, operand, inner, axis in ((x, weight, 1, -1), (weight, x, 2, -2)):
        found = _weight(operand, is_weight)
        if found is None or not isinstance(source, fx.Node) or not 1 < _dims(source) < 4:
            continue
        stored, by, turned = found
        if by is None or _dims(source) == 3:
            return Stack(node, stored, source, axis, *_axes(inner, turned), by=by)
    return None


@dataclass(frozen=True, eq=False)
class Origin:
    """How the rows of a product were put together, from the product back.

    Attributes:
        base: the value whose rows are tokens.
        steps: ``take`` rows by their numbers, ``interleave`` copies, ``tile`` copies.
    """

    base: fx.Node
    steps: tuple[Step, ...]

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """The values that :meth:`tokens` needs."""
        return tuple(value for _, value in self.steps if isinstance(value, fx.Node))

    def tokens(self, count: int, values: Mapping[fx.Node, Any], device: torch.device) -> Tensor:
        """The token of each row, int64 (count,).

        Args:
            count: how many rows the product has.
            values: of :attr:`reads`.
            device: where the numbers are wanted.
        """
        found = torch.arange(count, device=device)
        for how, value in self.steps:
            if isinstance(value, fx.Node):
                found = values[value].reshape(-1).to(device).long()[found]
            elif how == "interleave":
                found = found // value
            else:
                count //= value
                found = found % count
        return found


def origin_of(stack: Stack, is_weight: Weight, rows: Count) -> Origin | None:
    """Where the rows of a product come from, None where that cannot be told.

    Args:
        stack: the product.
        is_weight: whether a node reads a parameter.
        rows: the number of rows of a value, all axes but the last.
    """
    steps: list[Step] = []
    places = _places(stack, is_weight, rows)
    while len(places) == 1:
        (place,) = places
        step = _step(place, rows)
        if step is None:
            return Origin(place, tuple(steps)) if steps else None
        if step[0] == "tile" and any(how == "take" for how, _ in steps):
            return None  # how many rows there were to begin with is not known
        steps.append(step)
        source = place.args[0]
        while isinstance(source, fx.Node) and packet(source) in _SAME:
            if rows(source) != rows(source.all_input_nodes[0]):
                break
            source = source.args[0]
        places = {source} if isinstance(source, fx.Node) else set()
    return None


def _places(stack: Stack, is_weight: Weight, rows: Count) -> set[fx.Node]:
    """Back from a product to the values where its rows are put together."""
    found: set[fx.Node] = set()
    waiting, seen = [stack.source], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _step(node, rows) is not None:
            if not is_weight(node.args[0]):  # a bias for each row has no tokens
                found.add(node)
            continue
        before = stack_of(node, is_weight)
        if before is not None:
            waiting.append(before.source)
            continue
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        given = [n for n in node.all_input_nodes if _dims(n) > 1]
        if not (pointwise or packet(node) in _PASSES or _picks(node)) or not given:
            found.add(node)
            continue
        turned = packet(node) in (aten.unsqueeze, aten.squeeze)
        alike = [n for n in given if turned or rows(n) == rows(node)]
        column = [n for n in alike if _width(n) == 1 and _width(node) != 1 and not turned]
        waiting += [n for n in alike if n not in column]
        if not alike:
            found.add(node)
    return found


def _step(node: fx.Node, rows: Count) -> Step | None:
    """How a node puts rows together, None if it does not."""
    op = packet(node)
    if op in _PICKS and node.op == "call_function":
        given: Any = node.args[1:]
        numbers, first = (given[1], given[0] == 0) if len(given) == 2 else (given[0][0], True)
        if not first or (len(given) == 1 and len(given[0]) > 1) or _dims(numbers) != 1:
            return None
        return None if numbers.meta["val"].dtype is torch.bool else ("take", numbers)
    if op is aten.repeat_interleave:
        times, axis = argument(node, "repeats"), argument(node, "dim")
        return ("interleave", times) if isinstance(times, int) and axis == 0 else None
    if op not in (aten.repeat, aten.expand) or not isinstance(node.args[0], fx.Node):
        return None
    times, rest = divmod(rows(node), rows(node.args[0]))
    shape = node.meta["val"].shape
    first = op is aten.repeat or node.args[0].meta["val"].shape[0] == 1
    if rest or times < 2 or shape[-1] != node.args[0].meta["val"].shape[-1]:
        return None
    return ("tile", times) if first else ("interleave", times) if len(shape) == 3 else None


def _weight(node: object, is_weight: Weight) -> tuple[fx.Node, fx.Node | None, bool] | None:
    """The stack behind an operand, the numbers it was chosen by, and whether it is turned."""
    by, turned = None, False
    while isinstance(node, fx.Node) and node.op == "call_function":
        if packet(node) in _TURNS and _dims(node) == 3:
            if not _swaps(node):
                return None
            turned = not turned
        elif packet(node) in _PICKS and by is None:
            step = _step(node, lambda _: 1)
            if step is None or not isinstance(step[1], fx.Node):
                return None
            by = step[1]
        else:
            return None
        node = node.args[0]
    if not isinstance(node, fx.Node) or not is_weight(node) or _dims(node) != 3:
        return None
    return node, by, turned


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


def _picks(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _dims(node: object) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    value = value[0] if isinstance(value, tuple | list) and value else value
    return value.dim() if isinstance(value, Tensor) else 0


def _width(node: fx.Node) -> Any:
    value = node.meta["val"]
    return (value[0] if isinstance(value, tuple | list) else value).shape[-1]
