"""A model left exactly as it was found, whatever running or capturing it wrote into it."""

from __future__ import annotations

import contextlib
import operator
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn

# What holds no state of a model, or none that a forward pass changes.
_SKIPPED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    str, bytes, int, float, complex, bool, type(None),
    torch.dtype, torch.device, torch.Size, torch.Generator,
)  # fmt: skip
_PLAIN = frozenset(_SKIPPED) | {nn.Parameter}  # at once, for most values are
_DEPTH = 8


@contextlib.contextmanager
def preserved(model: nn.Module, written: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Put everything that a model holds back as it was when the block ends, also by an error.

    Attributes, parameters, buffers, submodules, hooks, training flags, and what lies in lists,
    dicts, sets and plain objects that modules refer to (configs, caches): the same objects are in
    the same places again, and the values of buffers and other tensors are those of before.

    Values of parameters are not kept, for a forward pass does not write into them.

    Args:
        model: any module.
        written: parameters that one does write into, whose values are kept too.
    """
    snapshot = _Snapshot()
    for tensor in written:
        snapshot.keep_values(tensor)
    snapshot.visit(model, 0)
    try:
        yield
    finally:
        snapshot.restore()


class _Snapshot:
    """Shallow copies of every container that is reached, and values of every tensor."""

    def __init__(self) -> None:
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Tensor | None, int]] = []
        self._seen: dict[int, Any] = {}  # holds what it has seen, so that no id comes twice

    def keep_values(self, tensor: torch.Tensor) -> None:
        """Remember what a tensor holds; of one without data only that it is there."""
        if id(tensor) in self._seen:
            return
        self._seen[id(tensor)] = tensor
        plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and not tensor.is_meta
        if plain and not tensor.is_inference():
            self._tensors.append((tensor, tensor.detach().clone(), tensor._version))

    def visit(self, value: Any, depth: int) -> None:
        """Remember a value and what it leads to."""
        if type(value) in _PLAIN or id(value) in self._seen:
            return
        if isinstance(value, torch.Tensor):
            if not isinstance(value, nn.Parameter):
                self.keep_values(value)
            return
        if isinstance(value, _SKIPPED) or depth > _DEPTH:
            return
        inside: Iterable[Any]
        if isinstance(value, dict):
            inside = self._remember(value, dict(value)).values()
        elif isinstance(value, list | set | deque):
            inside = self._remember(value, list(value))
        elif isinstance(value, tuple | frozenset):
            self._seen[id(value)] = value
            inside = value
        else:
            self._seen[id(value)] = value
            inside = (vars(value),) if hasattr(value, "__dict__") else ()
        # A module starts anew: how deep modules nest does not count.
        below = 0 if isinstance(value, nn.Module) else depth + 1
        for each in inside:
            self.visit(each, below)

    def _remember(self, container: Any, held: Any) -> Any:
        self._seen[id(container)] = container
        self._containers.append((container, held))
        return held

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back that is no longer what it was."""
        for container, held in self._containers:
            if isinstance(container, dict):
                _restore_dict(container, held)
            elif isinstance(container, set):
                if container != set(held):
                    container.clear()
                    container.update(held)
            elif not _same(container, held):
                container.clear()
                container.extend(held)
        for tensor, values, version in self._tensors:
            if tensor._version != version and values is not None:
                if tensor.shape == values.shape:
                    tensor.copy_(values)
                else:
                    tensor.data = values


def _restore_dict(container: dict[Any, Any], held: dict[Any, Any]) -> None:
    if not (_same(container, held) and _same(container.values(), held.values())):
        container.clear()
        container.update(held)


def _same(some: Collection[Any], others: Collection[Any]) -> bool:
    """Whether two containers hold the same objects in the same order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
