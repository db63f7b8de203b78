"""Calibration data out of text: crops, as many and as long as a configuration says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.data import sources
from fxprune.data.text import OWN, Text
from fxprune.data.written import MOST, in_batches, shares, written
from fxprune.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# By effort: crops for covariances, and written sequences for each crop.
MANY = {"low": 64, "default": 128, "high": 128}
WRITTEN = {"low": 0, "default": 3, "high": 6}


@dataclass(frozen=True)
class Draw:
    """Which crops of a text calibrate, and what the model writes beside them.

    Attributes:
        seed: the same seed gives the same crops.
        count: crops, if all were of the first length, see :func:`mixed_crops`.
        lengths: tokens in them, short ones first.
        written: sequences of the first length that the model writes.
    """

    seed: int
    count: int
    lengths: tuple[int, ...]
    written: int = 0

    def of(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        text: Text | torch.Tensor,
        known: dict[Draw, list[torch.Tensor]],
        progress: bool = False,
    ) -> list[torch.Tensor]:
        """The crops and what is written, int64 tensors of shape (batch, length).

        Args:
            model: writes, in the way of :func:`fxprune.data.written.written`.
            tokenizer: of the model.
            text: where crops are taken from, and what is written begins; or token ids (N, L); or
                :data:`OWN`, and the model writes all of it.
            known: what was made before; keeps what is made now.
            progress: show a progress bar.

        Raises:
            CalibrationError: the text is too short, or the model cannot write.
        """
        if self in known:
            return known[self]
        if text is OWN:
            both = (self.count, self.lengths), (self.written, self.lengths[:1])
            known[self] = [
                batch
                for part, (count, lengths) in enumerate(both)
                if count
                for batch in written(
                    model, tokenizer, count, lengths, seed=self.seed + 10 * part, progress=progress
                )
            ]
            return known[self]
        if not self.written:
            known[self] = mixed_crops(tokenizer, text, self.count, self.lengths, self.seed)
            return known[self]
        alone = replace(self, count=0)
        if alone not in known:
            known[alone] = written(
                model,
                tokenizer,
                self.written,
                self.lengths[:1],
                prompts=text,
                seed=self.seed,
                progress=progress,
            )
        crops = replace(self, written=0).of(model, tokenizer, text, known)
        known[self] = crops + known[alone]
        return known[self]


def as_text(given: Any) -> Text | None:
    """Calibration data as text, if it is a text, the name of one, or a list of strings.

    The name ``self`` is the model's own.

    Raises:
        CalibrationError: it names something that cannot be read, or is not text.
    """
    if isinstance(given, Text):
        return given
    if given == "self":
        return OWN
    if isinstance(given, str | Path):
        found = sources.source(given)
        if not isinstance(found, Text):
            raise CalibrationError(f"{given} holds token ids: load them, and give the tensor")
        return found
    strings = isinstance(given, Sequence) and given and all(isinstance(x, str) for x in given)
    return Text(f"{len(given)} texts", tuple(given)) if strings else None


def mixed_crops(
    tokenizer: PreTrainedTokenizerBase,
    data: Text | torch.Tensor,
    count: int,
    lengths: Sequence[int],
    seed: int = 0,
    most: int = MOST,
) -> list[torch.Tensor]:
    """Crops of several lengths with an equal share of the tokens each, in batches.

    Statistics taken in short windows alone do not hold in long ones, nor the other way round.

    Args:
        tokenizer: of the model.
        data: where to draw from: text; or token ids, int64 (N, L).
        count: crops, if all were of the first length; fewer of longer ones have as many tokens.
        lengths: tokens in a crop. A length that nothing has is left out, save the first.
        seed: the same seed gives the same crops, those of a smaller ``count`` first.
        most: tokens in a batch, if a crop has no more.

    Returns:
        int64 tensors of shape (batch, length).

    Raises:
        CalibrationError: nothing is as long as the first length.
    """
    wanted = [n for n in lengths if n == lengths[0] or _has(tokenizer, data, n, seed)]
    # Not the same records again in another length.
    found = [
        sources.draw(tokenizer, data, number, length, seed + 100 * place)
        for place, (length, number) in enumerate(zip(wanted, shares(count, wanted), strict=True))
    ]
    return [batch for each in found for batch in in_batches(each, most)]


def made_up(count: int, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Zeros in the batches that :func:`mixed_crops` gives of a text that is long enough."""
    return [
        batch
        for length, number in zip(lengths, shares(count, lengths), strict=True)
        for batch in in_batches(torch.zeros(number, length, dtype=torch.int64))
    ]


def _has(
    tokenizer: PreTrainedTokenizerBase, data: Text | torch.Tensor, length: int, seed: int
) -> bool:
    try:
        sources.draw(tokenizer, data, 1, length, seed)
    except CalibrationError:
        return False
    return True


def lengths_for(
    model: nn.Module, given: Sequence[int] | None, covariances: bool
) -> tuple[int, ...]:
    """Tokens in the crops, short ones first.

    Args:
        model: its config says how many positions it has.
        given: what was asked for, which is taken as it is.
        covariances: whether these are for covariances (``obs``, compensation), which short windows
            alone do not give for long ones.
    """
    if given is not None:
        return tuple(given)
    config: Any = getattr(model, "config", None)
    most = getattr(config.get_text_config(), "max_position_embeddings", None) if config else None
    lengths = (128, 1024) if covariances else (128,)
    return tuple(n for n in lengths if most is None or n <= max(most, lengths[0]))


def samples(given: int | None, covariances: bool, effort: str = "default") -> int:
    """Crops to see: 10 as in LLM-Pruner; for covariances (``obs``, least squares) 128, or fewer."""
    return given if given is not None else MANY[effort] if covariances else 10
