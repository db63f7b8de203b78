"""From what was measured on the model to the scores of one group."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from fxprune.axes.dims import find
from fxprune.errors import CriterionError
from fxprune.groups.group import Group, Site
from fxprune.importance.activations import Recorder
from fxprune.importance.aggregate import fold
from fxprune.importance.collect import Vectors
from fxprune.importance.criterion import Criterion, ElementCriterion
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.evidence import Evidence, Input, Made
from fxprune.importance.routing import Routing
from fxprune.importance.stacked import Experts
from fxprune.importance.statistics import merge
from fxprune.importance.targets import Reader


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything measured, for all criteria and groups.

    Attributes:
        parameters: the parameters at the groups' sites, by canonical name.
        readers: the readers of every group, by its name.
        recorder: the statistics of their inputs.
        moments: their second moments.
        vectors: the element scores.
        routing: what routers did, by the name of the group of experts.
        experts: what stacked weights were applied to, by the name of the weight.
    """

    parameters: Mapping[str, Tensor]
    readers: Mapping[str, tuple[Reader, ...]]
    recorder: Recorder
    moments: MomentRecorder
    vectors: Vectors
    routing: Mapping[str, Routing] = field(default_factory=dict)
    experts: Mapping[str, Experts] = field(default_factory=dict)

    def score(self, criterion: Criterion, group: Group) -> Tensor:
        """Scores of one group, float32 (group.size,), on the CPU.

        Raises:
            CriterionError: if they are not finite, or an input was never seen.
        """
        scores = criterion.unit_scores(group, self._evidence(criterion, group)).detach()
        if scores.shape != (group.size,) or not scores.isfinite().all():
            raise CriterionError(
                f"{criterion!r}: bad or non-finite scores for group {group.name!r}"
            )
        return scores.float().cpu()

    def _evidence(self, criterion: Criterion, group: Group) -> Evidence:
        needs = criterion.needs
        sites = [site for site in group.sites if site.parameter and needs]
        inputs = self.readers[group.name] if "inputs" in needs else ()
        return Evidence(
            self._members(criterion, group) if isinstance(criterion, ElementCriterion) else (),
            Made([partial(self._weight, site) for site in sites]),
            Made([partial(self._input, criterion, group, reader) for reader in inputs]),
            self.routing.get(group.name),
        )

    def _weight(self, site: Site) -> tuple[Site, Tensor]:
        return site, self.parameters[site.tensor].detach()

    def _members(self, criterion: ElementCriterion, group: Group) -> tuple[Tensor, ...]:
        dim = find(group.dim)
        members = []
        for site in (site for site in group.sites if site.parameter):
            vector = self.vectors[criterion, site.tensor, site.axis]
            member = fold(vector.cpu(), site.layout, dim)
            if not member.isfinite().all():
                raise CriterionError(
                    f"{criterion!r}: the scores of group {group.name!r} from the parameter "
                    f"{site.tensor!r} are not finite"
                )
            members.append(member)
        return tuple(members)

    def _input(self, criterion: Criterion, group: Group, reader: Reader) -> Input:
        name = reader.site.tensor
        seen = self.experts.get(name, Experts()).statistics
        alone = self.recorder.statistics.get(name)
        statistics = functools.reduce(merge, seen.values()) if seen else alone
        if statistics is None:
            raise CriterionError(
                f"{criterion!r} cannot score group {group.name!r}: no calibration token passed "
                f"through the module of {name!r}, which is not called or was sent none"
            )
        weight = self.parameters[name].detach()
        statistics = statistics.cpu()
        if not (statistics.squares + weight.float().sum().cpu()).isfinite().all():
            raise CriterionError(
                f"{criterion!r}: the scores of group {group.name!r} from the parameter "
                f"{name!r} or its inputs are not finite"
            )
        return Input(
            reader.site,
            weight,
            reader.output_axis,
            statistics,
            self.recorder.samples,
            self.moments.moments.get(name),
            tuple(self._expert(reader, weight, expert) for expert in sorted(seen)),
        )

    def _expert(self, reader: Reader, weight: Tensor, expert: int) -> Input:
        """The input of one expert, whose matrix lacks the axis of the stack."""
        site, known = reader.site, self.experts[reader.site.tensor]
        return Input(
            Site(site.tensor, site.axis - 1, site.layout, site.parameter),
            weight[expert],
            reader.output_axis - 1,
            known.statistics[expert].cpu(),
            self.recorder.samples,
            known.of(expert),
        )
