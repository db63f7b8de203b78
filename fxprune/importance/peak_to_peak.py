"""Peak to peak: the range of a unit's weights, and the size of its activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.axes.dims import find
from fxprune.errors import CriterionError
from fxprune.groups.group import Group, Site
from fxprune.importance.aggregate import aggregate, collapse, fold
from fxprune.importance.criterion import AggregatingCriterion, Needs
from fxprune.importance.evidence import Evidence


@dataclass(frozen=True)
class PeakToPeak(AggregatingCriterion):
    """Sum over the members of ``range / largest range of any unit``, times ``||x||_2``.

    Martra (2025), peak-to-peak magnitude for GLU layers, there the sum over gate, up and down
    projection; here over any group's members. ``range = max + |min|`` of a unit's weights in that
    member, by layout. ``||x||_2`` is the norm of the unit's activation over all calibration
    tokens as the consumer reads it; with several consumers, the root of the sum of their squares.
    Members that are vectors (biases, norm weights) have no range and are left out.

    Args:
        activations: multiply by the norm of the activation, which needs calibration data and
            consumers; False uses the weights alone.
        aggregate: how the members are reduced; ``"sum"`` is the published one.

    Raises:
        CriterionError: on use, for a group whose members are all vectors.
    """

    activations: bool = True

    @property
    def needs(self) -> Needs:
        """The weights and, with ``activations``, the consumers' inputs."""
        return frozenset({"weights", "inputs"} if self.activations else {"weights"})

    def unit_scores(self, group: Group, evidence: Evidence) -> Tensor:
        """The score of every unit, shape (group.size,)."""
        ranges = [_relative_range(group, *each) for each in evidence.weights if each[1].ndim > 1]
        if not ranges:
            raise CriterionError(
                f"{self!r} cannot score group {group.name!r}: no parameter of two or more axes "
                "holds its units"
            )
        scores = aggregate(ranges, self.aggregate)
        if self.activations:
            squares = [s.fold(s.statistics.squares, group.dim) for s in evidence.inputs]
            scores = scores * torch.stack(squares).sum(0).sqrt()
        return scores


@torch.no_grad()
def _relative_range(group: Group, site: Site, weight: Tensor) -> Tensor:
    dim = find(group.dim)
    largest = fold(collapse(weight, site.axis, "max").cpu().float(), site.layout, dim, "max")
    smallest = fold(collapse(weight, site.axis, "min").cpu().float(), site.layout, dim, "min")
    size = largest + smallest.abs()
    top = size.max()
    return size / top if top > 0 else size
