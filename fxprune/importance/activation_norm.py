"""Activation norm: the size of what a unit gives to its consumers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance.criterion import InputCriterion
from fxprune.importance.evidence import Input


@dataclass(frozen=True)
class ActivationNorm(InputCriterion):
    """Norm of a unit's activation over all calibration tokens, as the consumer reads it.

    After Minitron (Muralidharan et al., arXiv 2407.14679, section 2.2), which has heads, neurons
    and embedding channels. No weight enters. Needs calibration data, no gradients.

    Args:
        p: 2 for the root of the sum of squares over the tokens and the unit's channels, 1 for the
            mean absolute value over both.
        aggregate: how the scores from several consumers are reduced.

    Raises:
        CriterionError: for another ``p``.
    """

    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise CriterionError(f"ActivationNorm(p={self.p!r}): p must be 1 or 2")

    def member(self, group: Group, source: Input) -> Tensor:
        """The norm as one consumer sees it, shape (group.size,)."""
        statistics = source.statistics
        if self.p == 2:
            return source.fold(statistics.squares, group.dim).sqrt()
        total = source.fold(statistics.absolute, group.dim)
        return total / (source.channels_per_unit(group.dim) * statistics.count)
