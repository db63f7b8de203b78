"""FLAP: how much the input of a consumer fluctuates about its mean, which a bias can replace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fxprune.errors import CalibrationError
from fxprune.groups.group import Group
from fxprune.importance.aggregate import Aggregate
from fxprune.importance.criterion import InputCriterion, check_option
from fxprune.importance.evidence import Input
from fxprune.importance.wanda import weighted_norm


@dataclass(frozen=True)
class FLAP(InputCriterion):
    """Fluctuation of a unit's channels, standardised within each consumer.

    FLAP (An et al., arXiv 2312.11983), section 3. Per input channel j of a consumer with weight W

    * ``"WIFV"``: ``var_j * sum_i W_ij^2``, the default;
    * ``"IFV"``: ``var_j``;
    * ``"WIFN"``: ``mean_i |W_ij| * sqrt(mean over samples of ||x_j||^2)``,

    with var_j the unbiased variance of the channel over all calibration tokens. Where the units are
    those of experts, it is summed over them, each by its share of the tokens (in ``"WIFN"`` the
    norms have that). Then
    ``(m - mean) / std`` over the consumer's channels (unbiased std), and the mean over the
    channels of a unit. So scores compare across layers and may be negative: rank them globally
    with ``normalise="none"`` and ``cost_aware=False``, and compensate with a bias.

    Not copied from the published code: its fluctuation leaves out the first sample and subtracts
    the running mean twice (an aliased tensor), its unit cost of a head is cut off to an integer,
    and it squares the metric of attention (``squared=("attention",)`` does that).

    Args:
        metric: ``"WIFV"``, ``"IFV"`` or ``"WIFN"``.
        squared: kinds of groups whose metric is squared before it is standardised.
        aggregate: how the scores from several consumers are reduced.

    Raises:
        CriterionError: for other options.
        CalibrationError: on use, if there is but one token.
    """

    ranking: ClassVar[Mapping[str, Any]] = {"normalise": "none", "cost_aware": False}

    metric: Literal["WIFV", "IFV", "WIFN"] = "WIFV"
    squared: tuple[str, ...] = ()
    aggregate: Aggregate = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("metric", self.metric, ("WIFV", "IFV", "WIFN"))

    def member(self, group: Group, source: Input) -> Tensor:
        """The score from one consumer, shape (group.size,)."""
        metric = self._metric(source)
        if group.kind in self.squared:
            metric = metric.square()
        total = source.fold(_standardised(metric), group.dim)
        return total / source.channels_per_unit(group.dim)

    def _metric(self, source: Input) -> Tensor:
        if self.metric == "WIFN":
            return weighted_norm(source)
        if source.statistics.count < 2:
            raise CalibrationError(f"{self!r} needs at least 2 calibration tokens for a variance")
        if source.experts:
            found = torch.zeros_like(source.statistics.mean)
            for each in source.experts:
                if each.statistics.count > 1:  # a single token does not fluctuate
                    share = each.statistics.count / source.statistics.count
                    found = found + share * self._fluctuation(each)
            return found
        return self._fluctuation(source)

    def _fluctuation(self, source: Input) -> Tensor:
        variance = source.statistics.variance
        return variance if self.metric == "IFV" else variance * source.weights(2)


def _standardised(metric: Tensor) -> Tensor:
    centred = metric - metric.mean()
    if metric.numel() == 1 or not (metric != metric[0]).any():
        return torch.zeros_like(metric)  # nothing to tell the channels apart by
    return centred / metric.std()
