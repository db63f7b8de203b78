"""Taylor: how much the loss changes when weights become zero, to first or second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.importance.criterion import ElementCriterion, Need, Needs, check_option
from fxprune.importance.evidence import Gradients

Order = Literal[1, 2, "mixed"]

_NEEDS: dict[Order, tuple[Need, ...]] = {
    1: ("gradient",),
    2: ("squares",),
    "mixed": ("gradient", "squares"),
}


@dataclass(frozen=True)
class Taylor(ElementCriterion):
    """The change of the calibration loss when a unit's weights become zero, by Taylor's formula.

    LLM-Pruner (arXiv 2305.11627), equations 3 and 5. With g the gradient of the mean loss and h
    the diagonal of the Fisher information, an approximation of the Hessian's, the score of a
    weight w is

    * ``order=1``: ``|w g|`` ("Element1", ``param_first`` in their code);
    * ``order=2``: ``w h w`` ("Element2", ``param_second``);
    * ``order="mixed"``: ``|w g - w h w / 2|`` (``param_mix``).

    h is made of the squares of the gradients g_j of every sample's own mean loss. Convention of
    1/N: the published code divides their sum by the number of samples N (``fisher="mean"``, the
    default), equation 5 does not (``fisher="sum"``). With ``order=2`` that scales all scores
    alike; with ``"mixed"`` it changes how much the second order weighs.

    Order 2 and mixed run one backward pass per sample. Order 2 keeps no h, since its scores are
    linear in it; mixed holds the sums of g and h, in float32, for every scored parameter.

    Args:
        order: 1, 2 or ``"mixed"``.
        reduce: ``"element"`` takes absolute values of single weights; ``"vector"`` of the sum over
            each channel (a row or column of the weight), equation 4; a head is then the sum of
            its channels.
        fisher: ``"mean"`` or ``"sum"`` of the squared gradients over the samples.
        aggregate: how the members of a group are reduced.

    Raises:
        CriterionError: for other options, and for ``reduce="vector"`` with ``order=2``, whose
            terms are never negative, so that it would equal ``"element"``.
    """

    order: Order = 1
    reduce: Literal["element", "vector"] = "element"
    fisher: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("order", self.order, (1, 2, "mixed"))
        check_option("reduce", self.reduce, ("element", "vector"))
        check_option("fisher", self.fisher, ("mean", "sum"))
        if self.order == 2 and self.reduce == "vector":
            raise CriterionError(
                "Taylor(order=2, reduce='vector') equals reduce='element', as w h w is never "
                "negative: leave out reduce, or take order=1 or 'mixed'"
            )

    @property
    def needs(self) -> Needs:
        """The weights, and gradients by order."""
        return frozenset({"weights", *_NEEDS[self.order]})

    def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
        """Scores of the weights in float32, signed with ``reduce="vector"``."""
        weight = weight.float()
        # In place: a further temporary of the largest parameter would be the peak of memory.
        total = self._second(weight, gradients) if self.order != 1 else None
        if self.order == "mixed":
            assert total is not None
            total.mul_(-0.5)
        if self.order != 2:
            assert gradients.mean is not None
            first = gradients.mean.float()
            total = weight * first if total is None else total.addcmul_(weight, first)
        assert total is not None
        return total.abs_() if self.reduce == "element" else total

    def collapse(self, elements: Tensor, axis: int) -> Tensor:
        """The sums per position of an axis; with ``reduce="vector"`` their absolute values."""
        sums = super().collapse(elements, axis)
        return sums.abs() if self.reduce == "vector" else sums

    def _second(self, weight: Tensor, gradients: Gradients) -> Tensor:
        assert gradients.squares is not None
        scale = 1 / gradients.samples if self.fisher == "mean" else 1.0
        return torch.square(weight).mul_(gradients.squares).mul_(scale)
