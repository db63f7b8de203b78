"""How a transformers model or a graph is called on a batch of tokens, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.data.calibrate import arguments
from fxprune.data.loss import IGNORED, logits_of
from fxprune.errors import CalibrationError, RecoveryError
from fxprune.trace.inputs import device_of
from fxprune.trace.lockstep import input_names
from fxprune.trace.modes import evaluation

Inputs = dict[str, Any]
LossFunction = Callable[[nn.Module, Inputs], Tensor]
Take = Callable[[Mapping[str, Tensor]], Inputs]


def taker(module: nn.Module) -> Take:
    """What to call a language model with, for a batch with ``input_ids`` and ``attention_mask``.

    Rows are padded on the right, where nothing that counts sees it in a causal model; so the mask
    goes only to a graph that was traced with one.

    Args:
        module: a transformers model, a GraphModule, or any module with ``input_ids``.

    Raises:
        RecoveryError: it takes no ``input_ids``, or needs something that text does not have.
    """
    if isinstance(module, fx.GraphModule):
        names, fixed = input_names(module), {}
    else:
        names, _ = arguments(module)
        fixed = {"use_cache": False} if "use_cache" in names else {}
        names = tuple(name for name in names if name == "input_ids")
    if "input_ids" not in names:
        raise RecoveryError(
            f"{type(module).__name__} takes no input_ids: give recover(loss_fn=...) and batches"
        )
    if unknown := set(names) - {"input_ids", "attention_mask"}:
        raise RecoveryError(
            f"the graph was traced with {sorted(unknown)[0]!r}, which text does not give: trace "
            "the model with input_ids alone"
        )

    def take(batch: Mapping[str, Tensor]) -> Inputs:
        return {name: batch[name] for name in names} | fixed

    return take


@torch.no_grad()
def check_causal(module: nn.Module) -> None:
    """See that a module predicts the next token: what comes later must not change a prediction.

    A masked language model (BERT) has the same inputs and outputs, and would learn nonsense.

    Raises:
        RecoveryError: it does not, or does not run on rows of some tokens.
    """
    take, device = taker(module), device_of(module)
    ids = torch.arange(16, device=device).view(2, 8) % 4
    other = ids.clone()
    other[:, -1] = ids[:, 0]
    found = []
    with evaluation(module):
        for each in (ids, other):
            batch = {"input_ids": each, "attention_mask": torch.ones_like(each)}
            try:
                predicted, _ = next_token(module(**take(batch)), each, module)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RecoveryError(
                    f"{type(module).__name__} does not run on two rows of 8 tokens ({why}): a "
                    "graph must be traced with sizes that may change; what is not a language model "
                    "needs loss_fn"
                ) from error
            found.append(predicted.view(2, 8, -1)[:, :-1].float())
    first, second = found
    if not torch.allclose(first, second, rtol=0, atol=1e-4 * float(first.abs().max())):
        raise RecoveryError(
            f"{type(module).__name__} sees the tokens that it is to predict: it is not a causal "
            "language model; give loss_fn"
        )


def next_token(output: Any, labels: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits and labels of the predicted tokens.

    Args:
        output: what the model gave, with logits of shape (rows, length, vocabulary).
        labels: (rows, length); the label of a token is the token itself.
        module: for the message.

    Returns:
        Logits (rows * length, vocabulary) and the label that each should predict, (rows * length,):
        the token after it, :data:`IGNORED` where there is none.

    Raises:
        RecoveryError: there are no logits of that shape.
    """
    try:
        found = logits_of(module, output, "no logits to train on")
    except CalibrationError as error:
        raise RecoveryError(str(error)) from error
    if found.shape[:-1] != labels.shape:
        raise RecoveryError(
            f"{type(module).__name__} gives logits of shape {tuple(found.shape)} for tokens of "
            f"shape {tuple(labels.shape)}: it is not a language model"
        )
    # Labels move instead of logits, which are large and would be copied.
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return found.flatten(0, 1), shifted.flatten()


def cross_entropy(predicted: Tensor, labels: Tensor, count: Tensor | float | None) -> Tensor:
    """Negative log-likelihood over the labels that count, as a mean.

    Args:
        predicted: logits (tokens, vocabulary).
        labels: (tokens,).
        count: what to divide the sum by; None for the number of labels here.
    """
    total = F.cross_entropy(predicted.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (torch.count_nonzero(labels != IGNORED).clamp(min=1) if count is None else count)
