"""Scores of a model that runs piece by piece, with only one piece's weights present."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.branches.pieces import pieces_of
from fxprune.data.calibrate import Batch, Calibration, batches, rows
from fxprune.data.graph_inputs import masks
from fxprune.data.held import Held, holding
from fxprune.data.loader import Loader, Source
from fxprune.data.loss import GraphLoss, batch_loss, predictions
from fxprune.data.loss_function import LossFunction
from fxprune.data.sweep import Sweep, inputs_of
from fxprune.errors import CriterionError
from fxprune.groups.group import Group
from fxprune.importance import targets
from fxprune.importance.collect import DATA, DERIVATIVES, Vectors, score_weights
from fxprune.importance.criterion import Criterion, ElementCriterion, Needs
from fxprune.importance.curvature import MomentRecorder
from fxprune.importance.evidence import Gradients
from fxprune.importance.findings import Findings
from fxprune.importance.gradients import Samples
from fxprune.importance.routing import routers
from fxprune.importance.watch import Watcher, groups_by_piece

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def score_in_pieces(
    graph: DependencyGraph,
    criteria: Sequence[Criterion],
    chosen: Sequence[Group],
    calibration: Calibration | None,
    source: Source,
    *,
    loss_fn: LossFunction | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[dict[str, Tensor]]:
    """Score groups by several criteria, see :func:`fxprune.estimate`.

    One sweep forward serves the criteria that need no derivatives. The others take a second one,
    back: each piece is run again from what went into it, and differentiated.

    Args:
        graph: the groups of the model.
        criteria: what to score with.
        chosen: the groups.
        calibration: data for the criteria.
        source: where the weights come from.
        loss_fn: the loss of one batch.
        batch_size: sequences per forward pass.
        progress: show progress.

    Returns:
        For each criterion the scores by the name of the group.
    """
    traced = graph.traced
    source.check(traced)
    needs: Needs = frozenset().union(*(c.needs for c in criteria)) if chosen else frozenset()
    data: list[Batch] = []
    if needs & DATA and calibration is not None:
        size = 1 if "squares" in needs else batch_size
        data = batches(traced.module, calibration, size, source.device)
    inputs = inputs_of(traced, source, data)
    scoring = _Scoring(graph, criteria, chosen, source, needs)
    static = [c for c in scoring.elementary if not c.needs & DATA]
    if static:
        score_weights(scoring.vectors, static, progress)
    if data:
        scoring.run(data, inputs, loss_fn, progress)
    scoring.score(scoring.pending)
    return [{group.name: each[group.name] for group in chosen} for each in scoring.scores]


class _Parameters(Mapping[str, Tensor]):
    """The parameters of some groups: those of the piece that runs, the others read when asked."""

    def __init__(self, weights: Loader, names: Sequence[str]) -> None:
        self.weights, self.names = weights, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.weights[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Scoring:
    """Groups, and what is found of them as the pieces run."""

    def __init__(
        self,
        graph: DependencyGraph,
        criteria: Sequence[Criterion],
        chosen: Sequence[Group],
        source: Source,
        needs: Needs,
    ) -> None:
        self.graph, self.criteria, self.needs = graph, criteria, needs
        self.weights = Loader(pieces_of(graph.traced), source)
        self.elementary = [c for c in dict.fromkeys(criteria) if isinstance(c, ElementCriterion)]
        names = _parameters(graph, chosen) if self.needs else []
        parameters = _Parameters(self.weights, names)
        self.readers: dict[str, tuple[targets.Reader, ...]] = {}
        for one in (c for c in criteria if "inputs" in self.needs & c.needs):
            self.readers = targets.readers(None, graph, chosen, one)
        uses = [use for each in self.readers.values() for reader in each for use in reader.uses]
        seen = routers(graph, chosen) if "routing" in self.needs else {}
        self.watcher = Watcher(graph, uses, seen, moments="moments" in self.needs)
        self.watcher.check(self.weights.pieces)
        self.vectors = Vectors(parameters, chosen)
        watcher = self.watcher
        self.findings = Findings(
            parameters,
            self.readers,
            watcher.recorder,
            watcher.moments or MomentRecorder(),
            self.vectors,
            watcher.routing,
            watcher.experts.experts,
        )
        self.pending = list(chosen)
        self.scores: list[dict[str, Tensor]] = [{} for _ in criteria]
        graded = [c for c in self.elementary if c.needs & DATA]
        self.linear = [c for c in graded if c.needs & DERIVATIVES == {"squares"}]
        self.others = [c for c in graded if c not in self.linear]
        self.wanted = set(names) if graded else set()
        self.where = groups_by_piece(
            self.weights.pieces,
            {
                group.name: watcher.nodes(
                    group.name,
                    [use for each in self.readers.get(group.name, ()) for use in each.uses],
                )
                for group in chosen
            },
            {group.name: {site.tensor for site in group.sites} & self.wanted for group in chosen},
        )
        self.ran: set[int] = set()

    def run(
        self,
        data: Sequence[Batch],
        inputs: Sequence[Sequence[Any]],
        loss_fn: LossFunction | None,
        progress: bool,
    ) -> None:
        """Run all batches through the pieces, and score each group once all was seen of it."""
        traced, watcher = self.graph.traced, self.watcher
        watcher.hidden = [masks(traced, values) for values in inputs]
        watcher.recorder.samples = sum(map(rows, data))
        places = set().union(*self.where.values())
        if not places:
            return
        source = self.weights.source
        with holding(source.memory, source.scratch) as held:
            sweep = Sweep(self.weights, inputs, held, progress)
            if not (self.wanted or watcher.moments):
                sweep.forward(max(places) + 1, watcher, done=self._ran)
                return
            backward = _Backward(self, data, loss_fn, held)
            backward.unread()
            sweep.forward(len(self.weights.pieces) - 1, keep=True)
            sweep.backward(
                min(places),
                self.wanted,
                backward.loss,
                watcher,
                after=backward.after,
                done=backward.done,
            )

    def _ran(self, number: int) -> None:
        self.ran.add(number)
        self.score([group for group in self.pending if self.where[group.name] <= self.ran])

    def score(self, groups: Sequence[Group]) -> None:
        """Score some groups, and let go of what only they needed."""
        for group in groups:
            for criterion, scores in zip(self.criteria, self.scores, strict=True):
                scores[group.name] = self.findings.score(criterion, group)
        self.pending = [group for group in self.pending if group not in groups]
        left = {r.site.tensor for g in self.pending for r in self.readers.get(g.name, ())}
        for group in groups:
            for reader in self.readers.get(group.name, ()):
                if reader.site.tensor not in left:
                    self.watcher.forget(reader.site.tensor)


class _Backward:
    """The gradients of a sweep back."""

    def __init__(
        self,
        scoring: _Scoring,
        data: Sequence[Batch],
        loss_fn: LossFunction | None,
        held: Held,
    ) -> None:
        self.scoring, self.data, self.held = scoring, data, held
        traced = scoring.graph.traced
        self.loss_fn: LossFunction = loss_fn or GraphLoss(traced)
        self.counts = predictions(traced.module, list(data), self.loss_fn)
        self.total = sum(self.counts)
        sums: Needs = frozenset().union(*(c.needs & DERIVATIVES for c in scoring.others))
        self.by_sample = bool(scoring.linear) or "squares" in sums
        self.whole = partial(scoring.vectors.add, scoring.others)
        self.samples = Samples(
            sum(map(bool, self.counts)),
            partial(scoring.vectors.add, scoring.linear) if scoring.linear else None,
            self.whole if scoring.others else None,
            sums,
        )
        scoring.watcher.factors = [
            float(count if self.by_sample else self.total) if count else None
            for count in self.counts
        ]
        # The piece that a parameter's gradient is complete with: the first that reads it.
        self.ends: dict[str, int] = {}
        for number, piece in enumerate(scoring.weights.pieces):
            for name in scoring.wanted.intersection(piece.tensors):
                self.ends.setdefault(name, number)

    def loss(self, batch: int, model: nn.Module) -> Tensor | None:
        """What is differentiated for one batch; None if it weighs nothing."""
        count = self.counts[batch]
        if not count:
            return None
        found = batch_loss(model, self.data[batch], self.loss_fn)
        return found if self.by_sample else found * (count / self.total)

    def after(self, number: int, batch: int) -> None:
        """Of single samples, take the gradients that one gave."""
        if self.by_sample and self.counts[batch]:
            weight = self.counts[batch] / self.total
            for name, gradient in self._complete(number, batch):
                if gradient is not None:
                    self.samples.add(name, gradient.float(), weight)

    def done(self, number: int) -> None:
        """Take the gradients that are complete, and score what is."""
        here = self.scoring.weights.here
        if self.by_sample:
            ended = {n: here[n] for n in here if self.ends.get(n) == number}
            self.samples.finish(ended)
        else:
            for name, gradient in self._complete(number, None):
                mean = torch.zeros_like(here[name]) if gradient is None else gradient
                self.whole(name, Gradients(mean))
        self.scoring._ran(number)

    def unread(self) -> None:
        """Take the gradients of parameters that no piece reads: there are none."""
        parameters = self.scoring.vectors.parameters
        for name in sorted(self.scoring.wanted - self.ends.keys()):
            if self.by_sample:
                self.samples.finish({name: parameters[name]})
            else:
                self.whole(name, Gradients(torch.zeros_like(parameters[name])))

    def _complete(self, number: int, batch: int | None) -> Iterator[tuple[str, Tensor | None]]:
        """The gradients of a piece's parameters, with what later pieces gave for them.

        What an earlier piece will add to is held until then.
        """
        for name, tensor in self.scoring.weights.here.items():
            if name not in self.ends:
                continue
            gradient, tensor.grad = tensor.grad, None
            known = self.held.pop((name, batch))
            if known is not None:
                known = known.to(tensor.device)
                gradient = known if gradient is None else gradient.add_(known)
            if self.ends[name] == number:
                yield name, gradient
            elif gradient is not None:
                self.held.put((name, batch), gradient)


def _parameters(graph: DependencyGraph, groups: Sequence[Group]) -> list[str]:
    """The parameters at the groups' sites, by canonical name.

    Raises:
        CriterionError: one is not floating point.
    """
    names = list(dict.fromkeys(s.tensor for g in groups for s in g.sites if s.parameter))
    for name in names:
        dtype = graph.traced.tensors[name].dtype
        if not dtype.is_floating_point:
            raise CriterionError(f"{name!r} is {dtype}: scores need floats")
    return names
