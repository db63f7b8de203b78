"""Criteria that look at what a unit does to the residual stream, or to the model's output."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DepthCriterion:
    """Gives every residual branch or block a score; those with low scores are removed first.

    The criteria of single weights (:class:`fxprune.Magnitude`, :class:`fxprune.Taylor`) score
    units too: by the sum over the elements of all their parameters.
    """


@dataclass(frozen=True)
class PPL(DepthCriterion):
    """Perplexity of the calibration data with that one unit bypassed.

    Shortened LLaMA (Kim et al., arXiv 2402.02834, section 3.2): ``exp`` of the mean negative
    log-likelihood of the next token. Needs a language model, or labels in the calibration data.
    """


@dataclass(frozen=True)
class StreamCriterion(DepthCriterion):
    """Compares the residual stream before and behind a unit."""

    @abstractmethod
    def tokens(self, before: Tensor, behind: Tensor, mask: Tensor | None) -> Tensor:
        """One number per token that counts.

        Args:
            before: what enters, (batch, tokens, features); (batch, features) has one token.
            behind: the stream with what the unit adds, of the same shape.
            mask: boolean (batch, tokens), False for padding; None if all count.

        Returns:
            float32 of shape (n,), whose mean is the score.
        """


@dataclass(frozen=True)
class BlockInfluence(StreamCriterion):
    """``1 - E cos(x, y)`` over tokens, x the stream before the unit and y behind it.

    Block influence of ShortGPT (Men et al., arXiv 2403.03853, equation 1).
    """

    def tokens(self, before: Tensor, behind: Tensor, mask: Tensor | None) -> Tensor:
        """``1 - cos`` of every token."""
        distance = 1 - _cosine(before, behind)
        return distance.flatten() if mask is None else distance[mask]


@dataclass(frozen=True)
class AngularDistance(StreamCriterion):
    """``arccos(cos(x, y)) / pi`` at the last token of every sequence, averaged.

    Gromov et al. (arXiv 2403.17887, equation 7), made for runs of blocks: x is the stream before
    the first of them and y that behind the last, see ``Depth(schedule="run")``.
    """

    def tokens(self, before: Tensor, behind: Tensor, mask: Tensor | None) -> Tensor:
        """The angle at each sequence's last token."""
        angle = torch.arccos(_cosine(before, behind).clamp(-1, 1)) / math.pi
        if mask is None:
            return angle[:, -1]
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * places).argmax(1)
        return angle[torch.arange(len(angle)), last][mask.any(1)]


def _cosine(before: Tensor, behind: Tensor) -> Tensor:
    return functional.cosine_similarity(before.float(), behind.float(), dim=-1)
