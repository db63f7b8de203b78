"""Magnitude: the size of the weights, no data needed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.importance.criterion import ElementCriterion
from fxprune.importance.evidence import Gradients


@dataclass(frozen=True)
class Magnitude(ElementCriterion):
    """Sum of ``|w| ** p`` over a unit's weights, without a root.

    The L1/L2 baseline of LLM-Pruner (arXiv 2305.11627, table 1), whose code reduces members with
    ``aggregate="mean"``; within a group that ranks the units as ``"sum"`` does.

    Args:
        p: 1 or 2.
        aggregate: how the members of a group are reduced.

    Raises:
        CriterionError: for another ``p``.
    """

    p: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2):
            raise CriterionError(f"Magnitude(p={self.p!r}): p must be 1 or 2")

    def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
        """``|w| ** p`` in float32, shape of ``weight``."""
        weight = weight.float()
        return weight.abs() if self.p == 1 else weight.square()
