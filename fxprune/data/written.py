"""Calibration text that a language model writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.data.loss import continues
from fxprune.data.sources import draw
from fxprune.data.text import Text
from fxprune.errors import CalibrationError
from fxprune.progress import track
from fxprune.trace.modes import evaluation, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT = 16  # tokens of the user's text that each sequence begins with
TOKENS = 16384  # written at a time at most, which bounds the memory of their keys and values
MOST = 2048  # in a batch that calibrates: the logits and gradients of more are gigabytes


def written(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    lengths: Sequence[int],
    *,
    prompts: Text | torch.Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> list[torch.Tensor]:
    """Sequences that a model samples, for calibration beside real text or instead of it.

    A model's own text is drawn from what it has learnt, which a pruned model has to keep (the
    data-free calibration of LLM-QAT, Liu et al., arXiv 2305.17888, and what Ji et al., arXiv
    2410.17711, find for pruning). Each sequence continues the first tokens of a crop of the
    prompts or, without them, the BOS token. Nothing ends a sequence before its length.

    Args:
        model: a transformers model that generates.
        tokenizer: of the model.
        count: sequences, if all were of the first length; fewer of longer ones have as many tokens.
        lengths: tokens in a sequence, its prompt included; each length has an equal share.
        prompts: text, or token ids (N, L), to begin from.
        temperature: of the sampling, above 0.
        top_p: the most likely tokens that have this probability together are sampled from.
        seed: the same seed gives the same text.
        progress: show a progress bar.

    Returns:
        int64 tensors of shape (batch, length), batches of 2,048 tokens if a sequence has no more.

    Raises:
        CalibrationError: the model cannot generate, or fails to, or an option is out of its range.
    """
    if not writes(model):
        raise CalibrationError(
            f"{type(model).__name__} cannot write its own calibration text: give text instead"
        )
    if not (temperature > 0 and 0 < top_p <= 1):
        raise CalibrationError(
            f"temperature={temperature}, top_p={top_p}: above 0, and above 0 and at most 1"
        )
    starts = [
        (length, part)
        for place, (length, number) in enumerate(zip(lengths, shares(count, lengths), strict=True))
        for part in torch.split(
            _starts(tokenizer, prompts, number, length, seed + 100 * place),
            max(1, TOKENS // length),
        )
    ]
    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    # Sampling draws from torch's own generator.
    with evaluation(model), seeded(seed), torch.no_grad():
        for length, start in track(starts, "writing calibration text", progress):
            new = length - start.shape[1]
            try:
                ids = sampled(
                    model,
                    start.to(device),
                    torch.ones_like(start, device=device),
                    temperature=temperature,
                    top_p=top_p,
                    min_new_tokens=new,
                    max_new_tokens=new,
                    repetition_penalty=1.0,
                    pad_token_id=0,
                )
            except Exception as error:  # whatever the code of a model raises
                raise CalibrationError(
                    f"{type(model).__name__} cannot write its own calibration text "
                    f"({str(error) or type(error).__name__}): leave it out, written_samples=0"
                ) from error
            found += in_batches(ids.cpu())
    return found


def in_batches(ids: torch.Tensor, most: int = MOST) -> tuple[torch.Tensor, ...]:
    """Sequences of one length in batches of at most so many tokens, if a sequence has no more."""
    return torch.split(ids, max(1, most // ids.shape[1]))


def sampled(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """What ``generate`` samples behind some tokens, these included: no beams, no top-k, a cache.

    Args:
        model: a transformers model.
        ids: int64 (batch, length), filled up on the left.
        mask: 1 where they count.
        options: further ones of ``generate``.
    """
    found: torch.Tensor = model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, num_beams=1, use_cache=True, **options
    )
    return found


def writes(model: nn.Module) -> bool:
    """Whether a model can write text that continues its input."""
    return hasattr(model, "generate") and continues(model)


def shares(count: int, lengths: Sequence[int]) -> list[int]:
    """How many crops of each length: each has an equal share of ``count`` times the first."""
    share = count * lengths[0] // len(lengths)
    return [max(1, share // length) for length in lengths]


def _starts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Text | torch.Tensor | None,
    count: int,
    length: int,
    seed: int,
) -> torch.Tensor:
    """What the sequences begin with, int64 (count, tokens)."""
    if prompts is not None:
        return draw(tokenizer, prompts, count, max(2, min(PROMPT, length // 2)), seed)
    if tokenizer.bos_token_id is None:
        raise CalibrationError(
            "the tokenizer has no BOS token for the model to begin with: give text to begin from"
        )
    return torch.full((count, 1), tokenizer.bos_token_id)
