"""Layers that compute the same in several ways, by the one that ``torch.export`` can follow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Switch off, for a while, what ``nn.TransformerEncoder`` and its kin only do for speed.

    They look whether a mask happens to be the causal one, which depends on data. It is a hint:
    attention without it applies the mask itself. Their fused path for inference makes nested
    tensors of what a padding mask holds, which depends on data too.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with mock.patch.object(nn.modules.transformer, "_detect_is_causal_mask", _as_told):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Have ``torch.distributions`` take their parameters as they are, for a while.

    Whether those are valid depends on data; it changes nothing but whether an error is raised.
    """
    kind = torch.distributions.Distribution
    with mock.patch.object(kind, "_validate_args", False):
        yield


@contextlib.contextmanager
def grouped_experts(model: nn.Module) -> Iterator[None]:
    """Have the experts of a transformers model computed together, for a while.

    One by one (``experts_implementation="eager"``) it is those that the data hits, which no graph
    can hold. The sum is the same.
    """
    name = "_experts_implementation"
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    eager = [each for each in configs.values() if getattr(each, name, None) == "eager"]
    for each in eager:
        setattr(each, f"{name}_internal", "grouped_mm")
    try:
        yield
    finally:
        for each in eager:
            setattr(each, f"{name}_internal", "eager")


def _as_told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether the caller says that a mask is causal."""
    return is_causal is True
