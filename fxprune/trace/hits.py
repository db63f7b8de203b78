"""Loops over what the data hits, captured over everything that it could hit.

``for expert in (mask.sum((1, 2)) > 0).nonzero()`` runs as often as the data says, which no graph
can hold. Here it runs for every place of that axis. The list of rows of a place that is not hit is
empty, and to write no rows changes nothing; :mod:`fxprune.trace.unhit` finds out whether the body
of the loop does anything else.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.trace.arguments import argument, axes_of, axis_of
from fxprune.trace.held import hold

aten = torch.ops.aten
_T = torch.Tensor
_LOOPS = {_T.unbind, torch.unbind, _T.tolist}  # iter() unbinds
_LISTS = {torch.where, torch.nonzero, _T.nonzero}
_LISTED = {aten.where, aten.nonzero, aten.nonzero_numpy}
# A place, and whether it is zero, stay what they are.
_RESHAPED = {aten.view, aten.reshape, aten.flatten, aten.squeeze, aten.contiguous, aten.alias}
_CAST = {aten.to, aten._to_copy}
_NOT_ZERO = {aten.gt, aten.greater, aten.ne, aten.not_equal}
_SUMS = {aten.sum, aten.any}
_TURNED = {aten.permute, aten.transpose, aten.t}
_RANKED = {aten.topk, aten.sort, aten.max, aten.argsort, aten.argmax}
_PARTS = {aten.select, aten.slice}
AS_EMPTY = _RESHAPED | _CAST | _NOT_ZERO | _TURNED
_ORIGINS = AS_EMPTY | _PARTS | {aten.one_hot}

_LEFT_OUT: ContextVar[int | None] = ContextVar("left_out", default=None)


@dataclass(frozen=True)
class Mask:
    """What is hit: not zero anywhere at a place of one axis.

    Attributes:
        node: the mask, in the graph under way; bool, or counts.
        axis: of the places.
        places: how many can be hit.
    """

    node: fx.Node
    axis: int
    places: int


@contextlib.contextmanager
def left_out(half: int) -> Iterator[None]:
    """Leave every second place out of all loops: 0 for the first, third and so on."""
    token = _LEFT_OUT.set(half)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


@contextlib.contextmanager
def everywhere() -> Iterator[Loops]:
    """Let loops over what is hit run for every place during a capture."""
    with Loops(_LEFT_OUT.get()) as loops:
        yield loops


class Loops(TorchFunctionMode):
    """Answers what a loop goes over, and keeps account of the lists that it makes.

    Args:
        half: the places that are left out, see :func:`left_out`.
    """

    def __init__(self, half: int | None) -> None:
        super().__init__()
        self._half = half
        self._lists: dict[str, int] = {}
        self._masks: dict[tuple[fx.Node, int], Mask] = {}

    @property
    def lists(self) -> dict[str, int] | None:
        """The lists made of a mask at one place, as symbol of the length and place; None: no loop.

        They are empty for a place that is not hit.
        """
        return self._lists if self._masks else None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _LOOPS and (*args[1:], *(kwargs or {}).values()) in ((), (0,)):
            places = self._places(args[0])
            if places is not None:
                return [each.tolist() for each in places] if func is _T.tolist else places
        if func is _T.__getitem__ and _is_place(args[1]):
            place = int(args[1])
            args = (args[0], slice(place, place + 1))  # the same, and a view
        result = func(*args, **(kwargs or {}))
        if func in _LISTS and len(args) == 1:
            self._note(result if isinstance(result, torch.Tensor) else result[0])
        return result

    def _places(self, hits: Any) -> list[torch.Tensor] | None:
        """All places that could be among the hits; None if they are none."""
        if not _counted_by_data(hits) or (made := _node(hits)) is None:
            return None
        mask = _mask_behind(through(made, _RESHAPED))
        if mask is None or any(size != 1 for size in hits.shape[1:]):
            return None
        self._masks[mask.node, mask.axis] = mask
        with _disable_current_modes():
            rows = [
                torch.full([1] * (hits.dim() - 1), place)
                for place in range(mask.places)
                if self._half is None or place % 2 != self._half
            ]
        return [hold(row, frozenset(), set()) for row in rows]

    def _note(self, rows: torch.Tensor) -> None:
        """Keep a list of what a mask holds at one place, for it is empty where that is not hit.

        In the model it never is when the loop gets there, and so it says if it is asked.
        """
        if not _counted_by_data(rows) or (made := _node(rows)) is None:
            return
        source = list_of(made)
        part = through(source, AS_EMPTY)
        if packet(part) not in _PARTS:
            return
        whole = part.args[0]
        axis = axis_of(part, whole.meta["val"].dim())
        mask = self._masks.get((whole, axis))
        first = argument(part, "index" if packet(part) is aten.select else "start")
        if mask is None or not isinstance(first, int):
            return
        size: Any = rows.shape[0]
        self._lists[str(size.node.expr)] = first % whole.meta["val"].shape[axis]
        torch._check(size >= 1)  # type: ignore[no-untyped-call]


def origins(node: Any) -> Iterator[fx.Node]:
    """What the rows of a list were found in, the mask and what that was made of included."""
    node = list_of(node)
    while isinstance(node, fx.Node):
        yield node
        follows = packet(node) in _ORIGINS or node.target is operator.getitem
        node = node.args[0] if follows else None


def packet(node: Any) -> Any:
    """The op of a node, whatever its overload; None of what is none."""
    return getattr(getattr(node, "target", None), "overloadpacket", None)


def _is_place(index: Any) -> bool:
    return type(index).__name__ == "_Held" and index.shape == (1,) and not index.is_floating_point()


def _counted_by_data(value: Any) -> bool:
    """Whether it is a tensor of as many rows as the data says."""
    return (
        isinstance(value, torch.Tensor)
        and value.dim() > 0
        and isinstance(value.shape[0], torch.SymInt)
        and not value.shape[0].node.has_hint()
    )


def _node(value: torch.Tensor) -> fx.Node | None:
    """The node of a value in the graph that is being made."""
    mode = proxy_tensor.get_proxy_mode()
    if mode is None:
        return None
    found: Any = proxy_tensor.get_proxy_slot(value, mode.tracer, None)
    return None if found is None else found.proxy.node


def through(node: Any, ops: set[Any]) -> Any:
    """The node that these ops lead back to, comparisons being with 0."""
    while packet(node) in ops and (packet(node) not in _NOT_ZERO or node.args[1] == 0):
        node = node.args[0]
    return node


def list_of(node: Any) -> Any:
    """What the places are listed of that are not zero; None if the node is no such list."""
    if node is not None and node.target is operator.getitem:
        node = node.args[0]
    return node.args[0] if packet(node) in _LISTED and len(node.args) == 1 else None


def _mask_behind(node: Any) -> Mask | None:
    """The mask whose places are listed that are not zero all over the other axes."""
    source = list_of(node)
    if source is None or source.meta["val"].dim() != 1:
        return None
    axis = 0
    while (op := packet(source)) in _CAST | _NOT_ZERO | _SUMS:
        if (op in _NOT_ZERO and source.args[1] != 0) or argument(source, "keepdim"):
            return None
        listed, source = source, source.args[0]
        if op in _SUMS:
            rank = source.meta["val"].dim()
            gone = axes_of(listed, rank)
            axis = [place for place in range(rank) if place not in gone][axis]
    size = source.meta["val"].shape[axis]
    counts, place = turned_back(source, axis)
    whole = source.meta["val"].dtype == torch.bool
    if not isinstance(size, int) or not (whole or packet(counts) is aten.one_hot):
        return None
    if packet(counts) is aten.one_hot and place == counts.meta["val"].dim() - 1:
        size = min(size, _below(counts.args[0], size))
    return Mask(source, axis, size)


def turned_back(node: Any, axis: int) -> tuple[Any, int]:
    """What a value was before its axes changed places, and where one of them was."""
    while packet(node) in _TURNED | _CAST:
        order = list(range(node.args[0].meta["val"].dim()))
        if packet(node) is aten.permute:
            order = [place % len(order) for place in node.args[1]]
        elif packet(node) is aten.transpose:
            a, b = (int(argument(node, name)) for name in ("dim0", "dim1"))
            order[a], order[b] = order[b], order[a]
        elif packet(node) is aten.t:
            order.reverse()
        node, axis = node.args[0], order[axis]
    return node, axis


def _below(node: Any, size: int) -> int:
    """A number that whole numbers are less than: of positions on an axis, its size."""
    node = through(node, _RESHAPED | _CAST)
    if getattr(node, "target", None) is operator.getitem and node.args[1] == 1:
        node = node.args[0]
    if packet(node) not in _RANKED or argument(node, "dim") is None:
        return size
    shape = node.args[0].meta["val"].shape
    found = shape[axis_of(node, len(shape))]
    return found if isinstance(found, int) else size
