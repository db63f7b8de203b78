"""Models on ``meta`` are traced as if on the CPU.

Modelling code branches on the device and lifts constants to it, so a graph traced on ``meta`` can
differ from the real one. Fake CPU tensors, which hold no data either, stand in while exporting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from fxprune.trace.modes import unlogged

Tensors = dict[int, torch.Tensor]


@contextlib.contextmanager
def as_on_cpu(model: nn.Module, inputs: Any) -> Iterator[tuple[Any, Tensors]]:
    """Exchange a model's ``meta`` tensors for fake CPU ones.

    Args:
        model: any model; one that is not on ``meta`` is left alone.
        inputs: its example inputs.

    Yields:
        The inputs to export with, and the original tensor by the ``id`` of its stand-in.
    """
    if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        yield inputs, {}
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta:
            return tensor
        with mode:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made

    originals = _exchange(model, fake)
    try:
        yield pytree.tree_map_only(torch.Tensor, fake, inputs), originals
    finally:
        _exchange(model, lambda tensor: originals[id(tensor)])


@contextlib.contextmanager
def without_values(model: nn.Module) -> Iterator[FakeTensorMode]:
    """Let a model run on tensors that have shapes and no values.

    Args:
        model: any model; its tensors are taken as if they were without values.

    Yields:
        The mode, for making inputs.
    """
    tensors = [*model.parameters(), *model.buffers()]
    mode = detect_fake_mode(tensors) or FakeTensorMode(allow_non_fake_inputs=True)
    silent = unlogged(FakeTensorMode.__module__)
    with silent, torch.random.fork_rng(devices=[]), torch.no_grad(), mode:
        yield mode


@contextlib.contextmanager
def exchanged(module: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Other parameters and buffers for a while.

    Args:
        module: any module.
        make: gives what stands for a tensor, which may be the tensor itself.
    """
    originals = _exchange(module, make)
    try:
        yield
    finally:
        _exchange(module, lambda tensor: originals[id(tensor)])


def _exchange(model: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    """Replace every parameter and buffer; return the old ones by the ``id`` of the new."""
    made: dict[int, torch.Tensor] = {}
    old: Tensors = {}
    for module in model.modules():
        slots: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for slot in slots:
            for name, tensor in slot.items():
                if tensor is not None:
                    new = made.setdefault(id(tensor), make(tensor))
                    old[id(new)] = tensor
                    slot[name] = new
    return old
