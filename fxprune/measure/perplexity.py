"""Perplexity over non-overlapping windows, the measure of the pruning papers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fxprune.errors import CalibrationError
from fxprune.progress import track


def windows(ids: torch.Tensor, length: int = 128, limit: int | None = None) -> torch.Tensor:
    """Cut tokens into windows that do not overlap; what is left at the end is dropped.

    Args:
        ids: int64 tensor of shape (n,).
        length: tokens in a window.
        limit: at most so many windows, spread evenly over the text.

    Returns:
        int64 tensor of shape (windows, length).

    Raises:
        CalibrationError: there are fewer than ``length`` tokens.
    """
    count = len(ids) // length if length > 1 else 0
    if count == 0:
        raise CalibrationError(
            f"the evaluation text has {len(ids)} tokens, a window needs {max(length, 2)}; "
            "give a longer text or a shorter length"
        )
    cut = ids[: count * length].view(count, length)
    if limit is not None and limit < count:
        cut = cut[torch.linspace(0, count - 1, limit).long()]
    return cut


@torch.no_grad()
def perplexity(
    model: nn.Module, ids: torch.Tensor, *, batch_size: int = 4, progress: bool = False
) -> float:
    """``exp`` of the mean negative log-likelihood of each token given those before it.

    Args:
        model: a causal language model or a GraphModule of one, called with ``input_ids=``. It
            returns logits of shape (batch, length, vocabulary), or something that has ``.logits``.
        ids: windows, int64 of shape (windows, length). The first token of each is not predicted.
        batch_size: windows per forward pass.
        progress: show a progress bar.

    Returns:
        The perplexity; infinite where it overflows, NaN where the model gives NaN.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = torch.split(ids, batch_size)
    total = 0.0
    for batch in track(batches, "perplexity", progress):
        there = batch.to(device)
        predicted = logits(model(input_ids=there))[:, :-1].flatten(0, 1).float()
        total += F.cross_entropy(predicted, there[:, 1:].flatten(), reduction="sum").item()
    mean = total / (ids.shape[0] * (ids.shape[1] - 1))
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def logits(output: Any) -> torch.Tensor:
    """The logits in what a language model returns, whatever it wraps them in.

    Raises:
        CalibrationError: there are none.
    """
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    if isinstance(output, torch.Tensor):
        return output
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(found, torch.Tensor):
        raise CalibrationError("the model returns no logits; perplexity needs a language model")
    return found
