"""Changes of tensor values that can be taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Write = Callable[[Tensor, Tensor], None]


@contextlib.contextmanager
def revocable() -> Iterator[Write]:
    """Writes values into tensors; an error inside the block puts the old values back.

    Memory: a copy of each tensor that was written, until the end of the block.
    """
    old: list[tuple[Tensor, Tensor]] = []

    def write(tensor: Tensor, value: Tensor) -> None:
        old.append((tensor, tensor.detach().clone()))
        tensor.data.copy_(value)

    try:
        yield write
    except BaseException:
        for tensor, value in reversed(old):
            tensor.data.copy_(value)
        raise


def own(holder: torch.nn.Module, name: str, shared: Tensor | None) -> None:
    """Give a module a parameter of its own where it holds the very tensor that is shared."""
    there: Tensor = getattr(holder, name)
    if shared is not None and there is shared:
        copied = torch.nn.Parameter(there.detach().clone(), requires_grad=there.requires_grad)
        setattr(holder, name, copied)
