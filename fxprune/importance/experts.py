"""Criteria of experts: what is seen of them where tokens are routed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance.aggregate import fold
from fxprune.importance.criterion import Criterion, Needs
from fxprune.importance.evidence import Evidence
from fxprune.importance.routing import Routing


@dataclass(frozen=True)
class RoutingCriterion(Criterion):
    """Scores experts by what their router does; a unit of several experts is their sum.

    Raises:
        CriterionError: on use, for a group of other units than experts.
    """

    ranking: ClassVar[Mapping[str, Any]] = {"cost_aware": False}

    @property
    def needs(self) -> Needs:
        """Where the calibration tokens are routed."""
        return frozenset({"routing"})

    @abstractmethod
    def of(self, routing: Routing) -> Tensor:
        """A score for each expert, (experts,)."""

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """The scores of the experts of each unit, shape (group.size,)."""
        if evidence.routing is None:
            raise CriterionError(f"{self!r} scores experts, and {group.name!r} has none")
        return fold(self.of(evidence.routing), evidence.routing.layout, group.dim)


@dataclass(frozen=True)
class Frequency(RoutingCriterion):
    """How many calibration tokens the expert is chosen for.

    A baseline of REAP (Lasby et al., arXiv 2510.13999).
    """

    def of(self, routing: Routing) -> Tensor:
        """The number of tokens of each expert."""
        return routing.chosen


@dataclass(frozen=True)
class REAP(RoutingCriterion):
    """Mean over the tokens routed to an expert of its gate times the norm of its output.

    Router-weighted expert activation pruning (Lasby et al., arXiv 2510.13999). The gates of a token
    are taken as shares of their sum; where they scale what goes into the experts, the norm of what
    comes out is taken as it is. An expert that no token is routed to scores 0.
    """

    def of(self, routing: Routing) -> Tensor:
        """The mean of each expert."""
        return routing.added / routing.chosen.clamp(min=1)


@dataclass(frozen=True)
class ExpertNorm(RoutingCriterion):
    """Sum over the tokens routed to an expert of the norm of its output, without the gate.

    Expert activation norm, a baseline of REAP (Lasby et al., arXiv 2510.13999) from Jaiswal et al.
    (arXiv 2504.05586). Where the gate scales what goes into the expert, it is in the norm.
    """

    def of(self, routing: Routing) -> Tensor:
        """The sum of each expert."""
        return routing.given
