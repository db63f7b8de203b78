"""The run over all batches: read the inputs of a layer, then go on without its removed units."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fxprune.axes.dims import Dim
from fxprune.axes.positions import Units
from fxprune.data.calibrate import Calibration, batches, rows
from fxprune.data.graph_inputs import graph_inputs, masks
from fxprune.groups.consumers import Consumer
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance import targets
from fxprune.importance.activations import Recorder
from fxprune.importance.collect import Vectors
from fxprune.importance.criterion import Criterion
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.findings import Findings
from fxprune.importance.stacked import ExpertRecorder
from fxprune.importance.targets import Reader
from fxprune.importance.watch import tokens_at
from fxprune.ops.resize import Resizer
from fxprune.stream.stops import Stage
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.storage import mutates


class Run:
    """All batches, stopping at every consumer.

    ``ahead`` reads the inputs of a whole stage, then ``behind`` runs it again and removes its
    units. Where every stage has one consumer, the two are one run.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        criterion: Criterion,
        calibration: Calibration,
        batch_size: int | None,
        stages: Sequence[Stage],
    ) -> None:
        self.graph, self.criterion = graph, criterion
        self.scores: dict[str, Tensor] = {}
        traced = graph.traced
        stops = [stop for stage in stages for stop in stage]
        parameters = targets.parameters(traced.module, graph, [g for s in stops for g in s.groups])
        data = batches(traced.module, calibration, batch_size)
        inputs = [graph_inputs(traced, batch) for batch in data]
        self.masks = [masks(traced, values) for values in inputs]
        ends = [stop.consumer.node for stop in stops]
        stacked = tuple(stop.consumer for stop in stops if stop.consumer.stack is not None)
        self.experts = ExpertRecorder(traced=traced, consumers=stacked)
        late = [node for c in stacked if c.stack is not None for node in c.stack.taken]
        keep = {consumer.node: self.experts.reads(consumer) for consumer in stacked}
        self.ahead = self.behind = Lockstep(traced.graph_module, inputs, ends, keep, late)
        self.shared = {id(tensor): tensor for tensor in traced.tensors.values()}
        self.mutates = any(mutates(node) for node in traced.graph_module.graph.nodes)
        if len(stages) < len(stops):
            self.behind = Lockstep(traced.graph_module, self._apart(inputs), ends, keep, late)
        readers = {
            group.name: (Reader(stop.consumer.site, stop.consumer.output_axis, ()),)
            for stop in stops
            for group in stop.groups
        }
        recorder = Recorder(samples=sum(map(rows, data)))
        self.findings = Findings(
            parameters,
            readers,
            recorder,
            MomentRecorder({}),
            Vectors(parameters, ()),
            experts=self.experts.experts,
        )

    def score(self, stage: Stage) -> None:
        """Score the groups of a stage by what comes in now."""
        for consumer, groups in ((stop.consumer, stop.groups) for stop in stage):
            for values, hidden in zip(self.ahead.advance(consumer.node), self.masks, strict=True):
                if consumer.stack is not None:
                    self.experts.see(consumer, values, hidden)
                    continue
                tokens = tokens_at(self.graph, consumer, hidden)(values[consumer.source])
                self.findings.recorder.add(consumer.site.tensor, tokens)
            for group in groups:
                self.scores[group.name] = self.findings.score(self.criterion, group)

    def remove(self, stage: Stage, kept: Mapping[Dim, Units]) -> None:
        """Go on with what the stage gives without the removed units."""
        resize = Resizer(self.graph.inferred, kept, self.graph.traced.sizes)
        for consumer in (stop.consumer for stop in stage):
            if self.behind is not self.ahead:
                for _ in self.behind.advance(consumer.node):
                    pass
            layout = consumer.site.layout
            if resize.changed(layout):
                places, axis = resize.removed(layout), self._axis(consumer)
                for values in self.behind.values:
                    x = values[consumer.source]
                    values[consumer.source] = x.index_fill(axis, places.to(x.device), 0)
        if self.behind is not self.ahead:
            for there, here in zip(self.ahead.values, self.behind.values, strict=True):
                there.update(zip(here, self._apart(list(here.values())), strict=True))

    def _apart(self, values: list[Any]) -> list[Any]:
        """Values for another run: copies where a run changes values in place."""
        return copy.deepcopy(values, dict(self.shared)) if self.mutates else values

    def _axis(self, consumer: Consumer) -> int:
        """The axis of the input's channels; of a convolution, before those of the kernel."""
        if consumer.stack is not None:
            return consumer.source_axis
        kernel = len(self.graph.layouts[consumer.site.tensor]) - 2
        return -1 if consumer.source_axis == -1 else -1 - kernel
