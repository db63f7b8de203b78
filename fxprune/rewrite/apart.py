"""Tensors of a model's own: training it, or its running statistics, changes no other model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def set_apart(module: nn.Module, *others: nn.Module | Iterable[torch.Tensor]) -> None:
    """Copy what a module shares with others, one tensor at a time.

    What is tied in the module stays tied, and views of one memory stay views of one memory.

    Args:
        module: changed in place: its parameters, buffers and tensors that are plain attributes.
        others: modules and tensors that it is to share no memory with.
    """
    taken = {_memory(tensor) for other in others for tensor in _all(other)}
    users: dict[int, dict[int, torch.Tensor]] = {}
    for tensor in _all(module):
        users.setdefault(_memory(tensor), {})[id(tensor)] = tensor
    copies: dict[int, torch.Tensor] = {}
    for memory, tensors in users.items():
        if memory in taken:
            copies |= _copied(tensors)
    for each in module.modules():
        for slot, name, tensor in list(_held(each)):
            slot[name] = copies.get(id(tensor), tensor)


def _held(module: nn.Module) -> Iterable[tuple[dict[str, torch.Tensor], str, torch.Tensor]]:
    """The tensors of a module itself, each with the dict that holds it and its name there."""
    for slot in (module._parameters, module._buffers, vars(module)):
        for name, tensor in slot.items():
            if isinstance(tensor, torch.Tensor):
                yield slot, name, tensor  # type: ignore[misc]


def _all(other: nn.Module | Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    if isinstance(other, nn.Module):
        return (tensor for each in other.modules() for _, _, tensor in _held(each))
    return other


def _memory(tensor: torch.Tensor) -> int:
    """What two tensors have in common that share memory; also on ``meta``."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a subclass that holds others
        return id(tensor)


@torch.no_grad()
def _copied(tensors: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Copies of tensors of one memory by the ``id`` of the original."""
    if len(tensors) == 1:
        return {key: _like(tensor, tensor.detach().clone()) for key, tensor in tensors.items()}
    first = next(iter(tensors.values()))
    memory = first.untyped_storage().clone()  # type: ignore[no-untyped-call]
    return {
        key: _like(
            tensor,
            torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                memory, tensor.storage_offset(), tensor.shape, tensor.stride()
            ),
        )
        for key, tensor in tensors.items()
    }


def _like(tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """A copy as the kind of tensor that it is one of, with the attributes that users gave it."""
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, tensor.requires_grad)
    copy.__dict__.update(tensor.__dict__)
    return copy
