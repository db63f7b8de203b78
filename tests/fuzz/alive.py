"""Which entries of every tensor are left, followed through a plain run of a plain module.

A removed unit is an entry that is *dead*. The reference runs the original module at its full size,
and this mode stands between it and torch: views share the record of what they view, sums and norms
leave dead entries out, products read them as zero. No graph is looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

Rule = Callable[["Alive", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class UnknownOpError(Exception):
    """The reference has no rule for a function that is given dead entries."""


class Alive(TorchFunctionMode):
    """Runs torch functions, with a record of dead entries.

    The record is kept by storage, so that views and writes through them need no rule.

    Args:
        rules: by name of function what to do where an argument has dead entries.
    """

    def __init__(self, rules: dict[str, Rule]) -> None:
        super().__init__()
        self._rules = rules
        self._records: dict[int, tuple[Any, Tensor]] = {}

    def record(self, value: Tensor) -> Tensor | None:
        """The record of a tensor, a view into that of its storage; None if all is alive."""
        found = self._records.get(value.untyped_storage().data_ptr())
        if found is None:
            return None
        here = found[1].as_strided(value.size(), value.stride(), value.storage_offset())
        return None if bool(here.all()) else here

    def mark(self, value: Tensor, alive: Tensor | None) -> Tensor:
        """Note what is alive in a tensor; returns the tensor."""
        storage = value.untyped_storage()
        if alive is None and storage.data_ptr() not in self._records:
            return value
        if alive is not None and bool(alive.all()) and storage.data_ptr() not in self._records:
            return value
        if storage.data_ptr() not in self._records:
            flat = torch.ones(storage.nbytes() // value.element_size(), dtype=torch.bool)
            self._records[storage.data_ptr()] = (storage, flat)
        flat = self._records[storage.data_ptr()][1]
        here = flat.as_strided(value.size(), value.stride(), value.storage_offset())
        here.copy_(torch.ones((), dtype=torch.bool) if alive is None else alive)
        return value

    def whole(self, value: Tensor) -> Tensor:
        """The record of a tensor, all true if nothing is dead."""
        found = self.record(value)
        return torch.ones(value.shape, dtype=torch.bool) if found is None else found

    def zeroed(self, value: Any, fill: float = 0.0) -> Any:
        """The tensor with its dead entries at zero; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        found = self.record(value)
        return value if found is None else value.masked_fill(~found, fill)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in _ABOUT:
            return func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if all(self.record(x) is None for x in given):
            return func(*args, **kwargs)
        if name in self._rules:
            return self._rules[name](self, func, args, kwargs)
        if all((found := self.record(x)) is None or not found.any() for x in given):
            return self._dead(func, args, kwargs)
        raise UnknownOpError(name)

    def _dead(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a removed branch computes: any function of it is dead too."""
        zeros = tree_map_only(Tensor, self.zeroed, (args, kwargs))
        result = func(*zeros[0], **zeros[1])
        for value in tree_leaves(result):
            fresh = isinstance(value, Tensor) and value is not args[0]
            if fresh and value.is_floating_point():
                self.mark(value, torch.zeros(value.shape, dtype=torch.bool))
        return result


# What only asks about a tensor, or makes a fresh one of its size.
_ABOUT = frozenset((
    "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta",
    "is_nested", "is_sparse", "is_quantized", "layout", "names", "grad", "grad_fn", "is_leaf",
    "size", "dim", "stride", "numel", "nelement", "element_size", "storage_offset",
    "is_floating_point", "is_complex", "is_contiguous", "data_ptr", "untyped_storage",
    "get_device", "__len__", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "_is_view",
    "is_inference", "is_signed", "has_names", "is_mkldnn", "_version", "__hash__",
    "register_hook", "retain_grad", "finfo", "iinfo", "result_type", "is_same_size", "data",
))  # fmt: skip


def name_of(func: Any) -> str:
    """The plain name of a torch function, method or property."""
    name = str(getattr(func, "__name__", func))
    return str(func.__self__.__name__) if name == "__get__" else name


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Let functions written in Python run, so that the mode sees what they call."""
    no: Callable[..., bool] = lambda *args: False  # noqa: E731
    with contextlib.ExitStack() as stack:
        for module in (torch.nn.functional, torch.functional):
            for name in ("", "_unary", "_variadic"):
                if hasattr(module, f"has_torch_function{name}"):
                    stack.enter_context(mock.patch.object(module, f"has_torch_function{name}", no))
        yield
