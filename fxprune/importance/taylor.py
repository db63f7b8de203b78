"""Taylor: how much the loss changes when a weight becomes zero, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxprune.importance.criterion import ElementCriterion


@dataclass(frozen=True)
class Taylor(ElementCriterion):
    """Sum of ``|w * g|`` over a unit's weights, g the gradient of the mean calibration loss.

    Element-wise first-order importance of LLM-Pruner (arXiv 2305.11627, eq. 5 without its second
    order; ``param_first`` in their code, "Element1" in their tables). Needs calibration data.

    Args:
        aggregate: how the members of a group are reduced.
    """

    needs_gradients: ClassVar[bool] = True

    def elements(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """``|w * g|`` in float32, shape of ``weight``."""
        assert gradient is not None
        # In place on the product: a second temporary of the largest parameter would be the peak.
        return (weight.float() * gradient.float()).abs_()
