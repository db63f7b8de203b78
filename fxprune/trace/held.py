"""Inputs whose numbers a model reads in Python: held at the example's while it is captured."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.errors import TraceError

_T = torch.Tensor
# What makes numbers of a tensor, or sizes of its values.
_READS = {
    _T.item, _T.tolist, _T.__bool__, _T.__int__, _T.__float__, _T.__index__, _T.nonzero,
    _T.masked_select, _T.repeat_interleave, _T.unique, _T.unique_consecutive, torch.nonzero,
    torch.masked_select, torch.repeat_interleave, torch.unique, torch.unique_consecutive,
}  # fmt: skip
_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_WRITES = {"__setitem__", *(f"__i{name}__" for name in _OPERATORS)}
_MAKES = {torch.tensor, torch.arange, torch.zeros, torch.ones, torch.full, torch.linspace}
_UNKNOWN = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


class _Held(torch.Tensor):
    """A tensor with numbers: what is made of such tensors alone is computed and not captured."""

    places: frozenset[int]
    read: set[int]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        leaves, spec = pytree.tree_flatten((args, given))
        held = [x for x in leaves if isinstance(x, _Held)]
        alone = all(isinstance(x, _Held) or not isinstance(x, _UNKNOWN) for x in leaves)
        with torch._C.DisableTorchFunctionSubclass():
            plain = [x.as_subclass(torch.Tensor) if isinstance(x, _Held) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(plain, spec)
            if not alone:
                _check_unwritten(func, leaves[0], given.get("out"))
                return func(*args, **kwargs)
            with _disable_current_modes():
                result = func(*args, **kwargs)
        places = frozenset().union(*(x.places for x in held))
        masked = func is _T.__getitem__ and any(
            isinstance(x, _Held) and x.dtype == torch.bool for x in leaves[1:]
        )
        if func in _READS or masked:
            held[0].read.update(places)
        return pytree.tree_map(lambda x: hold(x, places, held[0].read), result)


class _Factories(TorchFunctionMode):
    """What is made of numbers alone, such as positions, has numbers too."""

    def __init__(self, read: set[int]) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves, spec = pytree.tree_flatten((args, kwargs or {}))
        if func not in _MAKES or any(
            isinstance(x, _UNKNOWN) and type(x) is not _Held for x in leaves
        ):
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass(), _disable_current_modes():
            plain = [x.as_subclass(torch.Tensor) if isinstance(x, _Held) else x for x in leaves]
            args, kwargs = pytree.tree_unflatten(plain, spec)
            result = func(*args, **kwargs)
        return hold(result, frozenset(), self._read)


def _check_unwritten(func: Any, given: Any, out: Any) -> None:
    """A graph would hold what is written as a constant, and write into that in every call.

    Args:
        func: what is called with values of the data.
        given: the first of its inputs.
        out: where its result goes, if that is said.

    Raises:
        TraceError: values of the data are written into numbers.
    """
    name = getattr(func, "__name__", "")
    writes = name in _WRITES or (name.endswith("_") and not name.endswith("__"))
    if (writes and isinstance(given, _Held)) or any(
        isinstance(each, _Held) for each in pytree.tree_leaves(out)
    ):
        raise TraceError(f"{name} writes values of the data into a tensor of plain numbers")


def hold(value: Any, places: frozenset[int], read: set[int]) -> Any:
    """A tensor with its numbers, that goes through a capture as it is; any other value itself."""
    if not isinstance(value, torch.Tensor):
        return value
    with torch._C.DisableTorchFunctionSubclass(), _disable_current_modes():
        made = value.detach().as_subclass(_Held)
    made.places, made.read = places, read
    return made


@contextlib.contextmanager
def holding(
    model: nn.Module, leaves: Sequence[Any], places: Collection[int], read: set[int]
) -> Iterator[None]:
    """Let a model have some of its inputs with their numbers, whatever it is called with.

    Args:
        model: the model.
        leaves: its example inputs, flat.
        places: of those to hold.
        read: the places of those of which numbers are taken go in here.
    """
    forward = model.forward

    @functools.wraps(forward)
    def with_numbers(*args: Any, **kwargs: Any) -> Any:
        given, spec = pytree.tree_flatten((args, kwargs))
        for place in places:
            given[place] = hold(leaves[place], frozenset({place}), read)
        args, kwargs = pytree.tree_unflatten(given, spec)
        with _Factories(read):
            return forward(*args, **kwargs)

    own = "forward" in vars(model)
    model.forward = with_numbers
    try:
        yield
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def candidates(model: nn.Module, kwargs: dict[str, Any], leaves: Sequence[Any]) -> set[int]:
    """Places of the inputs that may be held: whole numbers, but not what the model is all about."""
    main = kwargs.get(getattr(model, "main_input_name", ""), leaves[0] if leaves else None)
    return {
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and leaf is not main
        and not (leaf.is_meta or isinstance(leaf, FakeTensor))
        and not (leaf.is_floating_point() or leaf.is_complex())
    }
