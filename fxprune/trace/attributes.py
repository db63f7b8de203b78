"""Tensors and modules by dotted name."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn


def get_attribute(root: nn.Module, name: str) -> Any:
    """``root.a.b.c`` by dotted name."""
    return operator.attrgetter(name)(root)


def container(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made of empty modules where there is none."""
    module = root
    for part in path.split(".") if path else ():
        found = module._modules.get(part)
        if found is None:
            module.add_module(part, found := nn.Module())
        module = found
    return module


def set_attribute(root: nn.Module, name: str, value: Any) -> None:
    """Set ``root.a.b.c``, registering parameters, buffers and modules as what they are."""
    path, _, leaf = name.rpartition(".")
    module = container(root, path)
    if isinstance(value, nn.Parameter):
        module.register_parameter(leaf, value)
    elif isinstance(value, torch.Tensor):
        module.register_buffer(leaf, value)
    else:
        setattr(module, leaf, value)
