"""What a criterion is: a frozen dataclass whose fields are its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance.aggregate import AGGREGATES, Aggregate, aggregate, collapse
from fxprune.importance.evidence import Evidence, Gradients, Input

Need = Literal["weights", "gradient", "squares", "inputs", "moments", "routing"]
Needs = frozenset[Need]


@dataclass(frozen=True)
class Criterion(ABC):
    """Gives every unit of a group a score; units with low scores are removed first.

    Subclass :class:`ElementCriterion` for one that scores the elements of parameters,
    :class:`InputCriterion` for one that looks at the inputs of a group's consumers, and this for
    any other. ``repr`` is what scores and plans record as the criterion.

    Attributes:
        ranking: options of :func:`fxprune.select` that go with the scores; none for scores that
            have no common scale, which its defaults are for.
    """

    ranking: ClassVar[Mapping[str, Any]] = {}

    @property
    def needs(self) -> Needs:
        """What the scores are made of; nothing by default.

        ``weights``, ``gradient`` (of the mean loss), ``squares`` (of the gradients of single
        samples), ``inputs`` (statistics of the consumers' inputs), ``moments`` (second moments
        of those and of the gradients of the consumers' outputs) and ``routing`` (what routers do).
        """
        return frozenset()

    @abstractmethod
    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """Scores of the units of one group.

        Args:
            group: the group.
            evidence: what is known of it, by :attr:`needs`.

        Returns:
            Tensor of shape (group.size,), any floating dtype.
        """


@dataclass(frozen=True)
class AggregatingCriterion(Criterion):
    """Reduces several members to one score.

    Args:
        aggregate: ``sum``, ``mean``, ``max``, ``prod`` or ``last``.

    Raises:
        CriterionError: for another ``aggregate``.
    """

    aggregate: Aggregate = field(default="sum", kw_only=True)

    def __post_init__(self) -> None:
        check_option("aggregate", self.aggregate, AGGREGATES)


@dataclass(frozen=True)
class ElementCriterion(AggregatingCriterion):
    """Scores the elements of parameters; a unit gets the sum of its elements at every site.

    Args:
        aggregate: how the members (sites) of a group are reduced to one score: ``sum``, ``mean``,
            ``max``, ``prod`` or ``last``.

    Raises:
        CriterionError: for another ``aggregate``.
    """

    @property
    def needs(self) -> Needs:
        """The weights alone, unless overridden."""
        return frozenset({"weights"})

    @abstractmethod
    def elements(self, weight: Tensor, gradients: Gradients) -> Tensor:
        """Scores of the elements of one parameter.

        Args:
            weight: the parameter, any floating dtype; not to be changed.
            gradients: what :attr:`needs` asks for.

        Returns:
            float32 tensor of the parameter's shape.
        """

    def collapse(self, elements: Tensor, axis: int) -> Tensor:
        """Element scores to one number per position of an axis, shape (shape[axis],)."""
        return collapse(elements, axis)

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """The members reduced by ``aggregate``, shape (group.size,)."""
        if not evidence.members:
            return torch.zeros(group.size)  # only buffers hold its units, and those are not scored
        return aggregate(evidence.members, self.aggregate)


@dataclass(frozen=True)
class InputCriterion(AggregatingCriterion):
    """Scores units by the inputs of the group's consumers (o_proj, down_proj, ...).

    Args:
        aggregate: how the scores from several consumers are reduced to one, see
            :class:`ElementCriterion`.

    Raises:
        CriterionError: for another ``aggregate``; on use, for a group without consumers.
    """

    @property
    def needs(self) -> Needs:
        """The weights and inputs of the consumers."""
        return frozenset({"weights", "inputs"})

    @abstractmethod
    def member(self, group: Group, source: Input) -> Tensor:
        """Scores of the group's units from one consumer, shape (group.size,)."""

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """The consumers' scores reduced by ``aggregate``, shape (group.size,)."""
        return aggregate(
            [self.member(group, source).float() for source in evidence.inputs], self.aggregate
        )


def check_option(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise a CriterionError unless a criterion's option has one of its values."""
    # By type as well: True == 1.
    if not any(value == each and type(value) is type(each) for each in choices):
        raise CriterionError(f"{name}={value!r}: choose one of {', '.join(map(str, choices))}")
