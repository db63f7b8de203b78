"""What a criterion is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.importance.aggregate import AGGREGATES, Aggregate, aggregate, collapse

if TYPE_CHECKING:
    from fxprune.groups.group import Group


@dataclass(frozen=True)
class Criterion(ABC):
    """Gives every unit of a group a score; units with low scores are removed first.

    Subclass this for a criterion that needs no weights, and :class:`ElementCriterion` for one that
    scores the elements of parameters. ``repr`` is what scores and plans record as the criterion.
    """

    needs_gradients: ClassVar[bool] = False

    @abstractmethod
    def unit_scores(self, group: Group, members: Sequence[Tensor]) -> Tensor:
        """Scores of the units of one group.

        Args:
            group: the group.
            members: one float32 vector of shape (group.size,) per parameter site, in graph order;
                empty unless the criterion is an :class:`ElementCriterion`.

        Returns:
            float32 tensor of shape (group.size,).
        """


@dataclass(frozen=True)
class ElementCriterion(Criterion):
    """Scores the elements of parameters; a unit gets the sum of its elements at every site.

    Args:
        aggregate: how the members (sites) of a group are reduced to one score: ``sum``, ``mean``,
            ``max``, ``prod`` or ``last``.

    Raises:
        CriterionError: for another ``aggregate``.
    """

    aggregate: Aggregate = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise CriterionError(
                f"aggregate={self.aggregate!r}: choose one of {', '.join(AGGREGATES)}"
            )

    @abstractmethod
    def elements(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Scores of the elements of one parameter.

        Args:
            weight: the parameter, any floating dtype; not to be changed.
            gradient: gradient of the mean calibration loss, same shape, given where
                ``needs_gradients``.

        Returns:
            float32 tensor of the parameter's shape.
        """

    def collapse(self, elements: Tensor, axis: int) -> Tensor:
        """Element scores to one number per position of an axis, shape (shape[axis],)."""
        return collapse(elements, axis)

    def unit_scores(self, group: Group, members: Sequence[Tensor]) -> Tensor:
        """The members reduced by ``aggregate``, shape (group.size,)."""
        return aggregate(members, self.aggregate)
