"""Weights as before any training, to compare recovery with training from scratch."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.errors import RecoveryError
from fxprune.trace.modes import seeded


@torch.no_grad()
def reinitialise(module: nn.Module, seed: int = 0) -> None:
    """Forget the weights, in place: by the initialiser of transformers, or of each layer.

    Args:
        module: a transformers model; or one whose layers have ``reset_parameters``, as torch's
            have.
        seed: of the new weights.

    Raises:
        RecoveryError: a layer has no initialiser. (In the graph of a transformers model the norms
            have none; shrink it.)
    """
    from transformers import PreTrainedModel

    with seeded(seed):
        if isinstance(module, PreTrainedModel):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor._is_hf_initialized = False  # type: ignore[attr-defined]
            for each in module.modules():
                each._is_hf_initialized = False  # type: ignore[assignment]
            module.initialize_weights()  # type: ignore[no-untyped-call]
            module.tie_weights()
            return
        holders = [(n, m) for n, m in module.named_modules() if m._parameters]
        for name, each in holders:
            if not callable(getattr(each, "reset_parameters", None)):
                raise RecoveryError(
                    f"{name or type(module).__name__} has no initialiser of its own: train from "
                    "scratch what fxprune.shrink gives, a transformers model"
                )
        for _, each in holders:
            each.reset_parameters()
