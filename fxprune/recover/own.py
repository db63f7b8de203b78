"""Tensors of a module's own, so that training it changes no other model.

A pruned model shares with the original what lost nothing. Training that in place, or merging an
adapter into it, would change the original too, and a teacher that is the original.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


def own(module: nn.Module) -> dict[str, torch.dtype]:
    """Replace every tensor by a copy, one at a time; parameters in at least float32.

    Tied tensors stay tied.

    Args:
        module: changed in place. Its parameters can be trained afterwards.

    Returns:
        The dtypes before, of the parameters that were cast, by name.
    """
    cast: dict[str, torch.dtype] = {}
    for name, places in _places(module, "_parameters").items():
        parameter = _get(*places[0])
        half = parameter.dtype in (torch.float16, torch.bfloat16)
        if half:
            cast[name] = parameter.dtype
        data = parameter.detach().to(torch.float32 if half else parameter.dtype, copy=True)
        copy = nn.Parameter(data, requires_grad=data.is_floating_point())
        for owner, last in places:
            owner._parameters[last] = copy
        del parameter
    own_buffers(module)
    return cast


def own_buffers(module: nn.Module) -> None:
    """Replace the buffers by copies: running statistics change in training, whatever is trained."""
    for places in _places(module, "_buffers").values():
        buffer = _get(*places[0]).detach().clone()
        for owner, last in places:
            owner._buffers[last] = buffer


def own_flags(module: nn.Module) -> None:
    """Replace the parameters by others with the same values: frozen here, frozen nowhere else."""
    for places in _places(module, "_parameters").values():
        parameter = _get(*places[0])
        other = nn.Parameter(parameter.detach(), parameter.requires_grad)
        for owner, last in places:
            owner._parameters[last] = other


def own_weights(layers: Iterable[nn.Module]) -> None:
    """Replace the parameters of single layers by copies, as they are."""
    for layer in layers:
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None:
                copy = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                layer._parameters[name] = copy


def cast_back(module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Undo the casts of :func:`own`."""
    for name, dtype in dtypes.items():
        parameter = module.get_parameter(name)
        parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Put back which parameters have gradients, and the modes, of a module and all in it.

    Also whether it generates with a cache: Trainer switches that off in the config.
    """
    config = getattr(module, "config", None)
    cached = getattr(config, "use_cache", None)
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    modes = {each: each.training for each in module.modules()}
    try:
        yield
    finally:
        found = dict(module.named_parameters())
        for name, parameter in found.items():
            parameter.grad = None
            if found.keys() == flags.keys():  # else it has adapters yet, all else frozen
                parameter.requires_grad_(flags[name])
        for each, training in modes.items():
            each.training = training
        if config is not None and cached is not None:
            config.use_cache = cached


def _places(module: nn.Module, where: str) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each tensor is held, by its first name."""
    names: dict[int, str] = {}
    found: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, owner in module.named_modules():
        for last, tensor in getattr(owner, where).items():
            if tensor is not None:
                name = names.setdefault(id(tensor), f"{path}.{last}" if path else last)
                found.setdefault(name, []).append((owner, last))
    return found


def _get(owner: nn.Module, name: str) -> torch.Tensor:
    tensor = getattr(owner, name)
    assert isinstance(tensor, torch.Tensor)
    return tensor
