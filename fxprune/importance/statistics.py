"""Statistics of the channels of an activation, merged over batches without losing digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is kept of all the tokens seen: a few numbers per channel, in float64.

    Attributes:
        count: number of tokens (for a convolution: positions) seen.
        mean: mean of each channel, shape (C,).
        deviation: sum of squared deviations from the mean, shape (C,).
        absolute: sum of absolute values, shape (C,).
    """

    count: int
    mean: Tensor
    deviation: Tensor
    absolute: Tensor

    @property
    def squares(self) -> Tensor:
        """Sum of squares of each channel over the tokens, shape (C,)."""
        return self.deviation + self.count * self.mean.square()

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of each channel over the tokens, shape (C,); NaN for one token."""
        return self.deviation / (self.count - 1 or torch.nan)

    def cpu(self) -> Statistics:
        """The same on the CPU, in float64."""
        moved = (t.cpu().double() for t in (self.mean, self.deviation, self.absolute))
        return Statistics(self.count, *moved)


@torch.no_grad()
def measure(values: Tensor) -> Statistics:
    """Statistics of a matrix.

    Args:
        values: shape (tokens, C), any floating dtype, at least one token.
    """
    # In two passes, since E[x^2] - E[x]^2 cancels where the mean is large.
    values = values.detach()
    values = values if values.dtype == torch.float64 else values.float()
    mean = values.mean(0)
    deviation = (values - mean).square_().sum(0)
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    sums = (t.to(wide) for t in (mean, deviation, values.abs().sum(0)))
    return Statistics(values.shape[0], *sums)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the tokens of both (Chan, Golub and LeVeque, 1979)."""
    count = a.count + b.count
    difference = b.mean - a.mean
    return Statistics(
        count,
        a.mean + difference * (b.count / count),
        a.deviation + b.deviation + difference.square() * (a.count * b.count / count),
        a.absolute + b.absolute,
    )
