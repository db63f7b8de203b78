"""What tells two sets of tensors, or two models, apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names, types, shapes and values of tensors."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def model_digest(model: nn.Module) -> str:
    """sha256 over the weights and buffers of a model: fine-tunes of one shape differ."""
    return digest(sorted(model.state_dict().items()))
