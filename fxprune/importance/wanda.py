"""Wanda, structured: the weights of a consumer times the size of what they are applied to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.groups.group import Group
from fxprune.importance.criterion import InputCriterion
from fxprune.importance.evidence import Input


@dataclass(frozen=True)
class WandaSP(InputCriterion):
    """Mean over the outputs i of ``|W_ij| * sqrt(mean over samples of ||x_j||^2)``.

    Wanda-sp of FLAP (An et al., arXiv 2312.11983), after Wanda (Sun et al., arXiv 2306.11695). x
    is the input of the consumer, W its weight; ``||x_j||^2`` sums over the tokens of a sample.
    The score of a unit of several channels j (a head) is their sum. Of a convolution, all
    positions of the kernel are added, and of experts all whose unit it is, each with the tokens
    that were sent to it. Needs calibration data, no gradients.

    Unlike the published code, no surplus rows of zeros are run, and the inputs are those of the
    whole model, not of one whose earlier layers are already pruned; ``fxprune.propagate`` gives
    those.

    Args:
        aggregate: how the scores from several consumers are reduced.
    """

    def member(self, group: Group, source: Input) -> Tensor:
        """The score from one consumer, shape (group.size,)."""
        return source.fold(weighted_norm(source), group.dim)


def weighted_norm(source: Input) -> Tensor:
    """``mean_i |W_ij| * sqrt(mean over samples of ||x_j||^2)`` per input channel j, (C,)."""
    if source.experts:
        return torch.stack([weighted_norm(each) for each in source.experts]).sum(0)
    norm = (source.statistics.squares / source.samples).sqrt()
    return source.weights(1) / source.outputs * norm
