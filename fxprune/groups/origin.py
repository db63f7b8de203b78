"""Which token each row of a product with experts is of: how its rows were put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from fxprune.groups.stacked import Stack, Values, Weight, dimensions, numbers_of, stack_of
from fxprune.ops.op import packet
from fxprune.trace.arguments import argument

aten = torch.ops.aten

# Rows stay as they are; some of these move or cut the axis of the channels.
_PASSES = {
    aten.to, aten._to_copy, aten.view, aten.reshape, aten._unsafe_view, aten.unsqueeze, aten.slice,
    aten.squeeze, aten.contiguous, aten.clone, aten.detach, aten.alias, aten.dropout, aten.chunk,
    aten.split, aten.split_with_sizes, aten.narrow, aten.layer_norm, aten.rms_norm,
}  # fmt: skip
_SAME = {aten.to, aten._to_copy, aten.view, aten.reshape, aten.contiguous, aten.clone, aten.alias}

Shape = Callable[[fx.Node], tuple[int, ...]]
Step = tuple[str, int | fx.Node]


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

    def tokens(self, count: int, values: Values, device: torch.device) -> Tensor:
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


def origin_of(stack: Stack, is_weight: Weight, shape: Shape) -> Origin | None:
    """Where the rows of a product come from, None where that cannot be told.

    Args:
        stack: the product.
        is_weight: whether a node reads a parameter.
        shape: of a value, with a stand-in for each symbolic size.
    """
    if stack.broadcasts:
        return Origin(stack.source, (("tile", stack.size),)) if stack.axis == -1 else None
    steps: list[Step] = []
    places = _places(stack, is_weight, shape)
    while len(places) == 1:
        (place,) = places
        step = _step(place, shape)
        if step is None:
            return Origin(place, tuple(steps)) if steps else None
        if step[0] == "tile" and any(how == "take" for how, _ in steps):
            return None  # how many rows there were to begin with is not known
        steps.append(step)
        source = place.args[0]
        while isinstance(source, fx.Node) and packet(source) in _SAME:
            if _rows(shape(source)) != _rows(shape(source.all_input_nodes[0])):
                break
            source = source.args[0]
        places = {source} if isinstance(source, fx.Node) else set()
    return None


def _places(stack: Stack, is_weight: Weight, shape: Shape) -> set[fx.Node]:
    """Back from a product to the values where its rows are put together."""
    found: set[fx.Node] = set()
    waiting, seen = [stack.source], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _step(node, shape) is not None:
            if not is_weight(node.args[0]):  # a bias for each row has no tokens
                found.add(node)
            continue
        before = stack_of(node, is_weight)
        if before is not None:
            waiting.append(before.source)
            continue
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        given = [n for n in node.all_input_nodes if dimensions(n) > 1]
        if not (pointwise or packet(node) in _PASSES or _picks(node)) or not given:
            found.add(node)
            continue
        turned = packet(node) in (aten.unsqueeze, aten.squeeze)
        alike = [n for n in given if turned or _rows(shape(n)) == _rows(shape(node))]
        column = [n for n in alike if shape(n)[-1] == 1 != shape(node)[-1] and not turned]
        waiting += [n for n in alike if n not in column]
        if not alike:
            found.add(node)
    return found


def _step(node: fx.Node, shape: Shape) -> Step | None:
    """How a node puts rows together, None if it does not."""
    op = packet(node)
    if (numbers := numbers_of(node)) is not None:
        return "take", numbers
    if op is aten.repeat_interleave:
        times, axis = argument(node, "repeats"), argument(node, "dim")
        return ("interleave", times) if isinstance(times, int) and axis == 0 else None
    if op not in (aten.repeat, aten.expand) or not isinstance(node.args[0], fx.Node):
        return None
    after = shape(node)
    before = (1,) * (len(after) - len(shape(node.args[0]))) + shape(node.args[0])
    changed = [
        axis for axis, sizes in enumerate(zip(before, after, strict=True)) if len({*sizes}) > 1
    ]
    if len(changed) != 1 or changed[0] == len(after) - 1:
        return None
    (axis,) = changed
    if prod(before[:axis]) == 1:
        return "tile", after[axis] // before[axis]
    return ("interleave", after[axis]) if prod(before[axis:-1]) == 1 else None


def _rows(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1])


def _picks(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"
