"""A local search: which groups should give more, and which less, by what whole plans cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from fxprune.data.calibrate import Calibration, batches, held_out
from fxprune.data.graph_inputs import graph_inputs, masks
from fxprune.errors import CalibrationError, CheckpointError
from fxprune.files import write_text
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.progress import track
from fxprune.stream.divergence import Change, Divergence
from fxprune.stream.fewer import columns, fewer, moments
from fxprune.stream.options import HELD, Stop, products_of
from fxprune.trace.digests import digest
from fxprune.trace.lockstep import Lockstep
from fxprune.trace.modes import evaluation, quick_products

ROUNDS = 12
TRIED = 16  # moves in a round
STEP = 1.25  # a move makes groups dearer and others cheaper by this factor
MOST = 3  # groups on either side of a move
# How many moves of a round are left after they were tried on a share of the data.
HALVING = ((4, 0.125), (1, 0.5))


@quick_products()
def local_search(
    graph: DependencyGraph,
    scores: Scores,
    calibration: Calibration,
    choose: Callable[[Scores], Plan],
    *,
    rounds: int = ROUNDS,
    batch_size: int | None = 8,
    seed: int = 0,
    state: str | Path | None = None,
    progress: bool = False,
) -> Scores:
    """Look for better plans around the one that the scores make.

    A move makes the units of one to three groups dearer by a quarter and those of as many others
    cheaper, so that the plan takes less here and more there and meets the same limits. Of sixteen
    moves a round, tried on an eighth of the held-out sequences, the best four are tried on half of
    them, and the best of these on all; if the plan then diverges less from the dense model than the
    present one does, it is the present one. Plans are tried whole: in the dense model, with every
    product that reads removed units refitted to what it gave there. (An evolutionary search with
    one parent, as EvoPress, Sieberling et al., arXiv 2410.14649.)

    Memory: the product of its inputs with themselves for each consumer, float32.

    Args:
        graph: the groups of a model that was traced with its weights.
        scores: of the groups to choose from.
        calibration: data as for :func:`fxprune.estimate`; the last eighth of the sequences of each
            length measures, the others are refitted to.
        choose: makes a plan of scores, such as :func:`fxprune.select` with its options.
        rounds: how many moves may be made.
        batch_size: sequences per forward pass.
        seed: of the moves.
        state: a file that is written after each round; the same call goes on from there.
        progress: show a progress bar.

    Returns:
        The scores, each group's times a factor. They are saved and planned from as any others.

    Raises:
        CalibrationError: there is too little data, it does not fit the model, the model gives no
            logits, or none of the groups can be tried.
        CheckpointError: the state is that of another search.
    """
    module = graph.traced.module
    fit, held = held_out(batches(module, calibration, batch_size), HELD)
    if not held:
        raise CalibrationError(
            "too little calibration data to hold a part of it back: give at least four sequences "
            "of one length, or leave out search='local'"
        )
    stops, skipped = products_of(graph, scores)
    names = [name for name in scores if name not in skipped and graph[name].size > 1]
    if len(names) < 2:
        raise CalibrationError(
            "a local search moves units between groups, and there are fewer than two that can be "
            "tried: leave out search='local'"
        )
    log = _State.read(state, digest(scores.items()), seed)
    with evaluation(graph.traced.graph_module), torch.no_grad():
        whole = _Whole(graph, stops, fit, held, batch_size)
        present = whole.costs(choose(_times(scores, log.factors)), whole.share(1.0))
        for number in track(range(log.rounds, rounds), "searching", progress):
            left = _moves(names, log.factors, seed, number)
            for count, share in HALVING:
                taken = whole.share(share)
                tried = [
                    (sum(whole.costs(choose(_times(scores, move)), taken).values()), place)
                    for place, move in enumerate(left)
                ]
                left = [left[place] for _, place in sorted(tried)[:count]]
            found = whole.costs(choose(_times(scores, left[0])), whole.share(1.0))
            if sum(found.values()) < sum(present.values()):
                present, log.factors = found, left[0]
            log.rounds = number + 1
            log.write()
    return _times(scores, log.factors)


class _Whole:
    """What whole plans cost."""

    def __init__(
        self,
        graph: DependencyGraph,
        stops: Mapping[fx.Node, Stop],
        fit: Calibration,
        held: Calibration,
        batch_size: int | None,
    ) -> None:
        traced = graph.traced
        self._graph, self._stops = graph, stops
        data = [graph_inputs(traced, b) for b in batches(traced.module, fit, batch_size)]
        hidden = [masks(traced, values) for values in data]
        order = [node for node in traced.graph_module.graph.nodes if node in stops]
        run = Lockstep(traced.graph_module, data, order)
        self._moments: dict[fx.Node, Tensor] = {}
        for node in order:
            consumer = stops[node].consumer
            assert consumer is not None
            self._moments[node] = moments(traced, run, hidden, consumer).float()
        self._divergence = Divergence.of(graph, batches(traced.module, held, 1))
        self._known: dict[fx.Node, tuple[object, Change]] = {}

    def share(self, share: float) -> list[int]:
        """Numbers of the sequences that a part of the data has, spread over all."""
        count = len(self._divergence.places)
        taken = max(1, math.ceil(share * count))
        return [place * count // taken for place in range(taken)]

    def costs(self, plan: Plan, taken: Sequence[int]) -> dict[int, float]:
        """The divergence under a plan in some of the sequences, nats.

        Raises:
            CalibrationError: it is not finite.
        """
        changes = {}
        for node, stop in self._stops.items():
            kept = {g.name: plan.kept[g.name] for g in stop.groups if g.name in plan.kept}
            if kept:
                changes[node] = self._change(node, stop, kept)
        tried, found = self._divergence, {}
        for number in taken:
            value = tried.run.ahead(number, tried.end, changes=changes)
            found[number] = tried.lost(number, value)
            if not math.isfinite(found[number]):
                raise CalibrationError("the logits of a plan are not finite")
        return found

    def _change(self, node: fx.Node, stop: Stop, kept: Mapping[str, Sequence[int]]) -> Change:
        """Refitted once while the units that stay are the same."""
        same, change = self._known.get(node, (None, None))
        if change is None or same != kept:
            assert stop.consumer is not None
            left = columns(self._graph, stop.consumer, kept)
            change = fewer(self._graph.traced, stop.consumer, self._moments[node], left)
            self._known[node] = kept, change
        return change


@dataclass
class _State:
    """How far a search is.

    Attributes:
        file: where it is noted, if anywhere.
        asked: what tells searches apart.
        factors: of each group that was moved.
        rounds: how many were gone through.
    """

    file: Path | None
    asked: str
    factors: dict[str, float]
    rounds: int = 0

    @classmethod
    def read(cls, file: str | Path | None, scores: str, seed: int) -> _State:
        asked = f"{scores} {seed}"
        if file is None or not Path(file).exists():
            return cls(None if file is None else Path(file), asked, {})
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            known, factors, rounds = found["asked"], found["factors"], found["rounds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file} cannot be read as the state of a search") from error
        if known != asked:
            raise CheckpointError(
                f"{file} is the state of a search by other scores or with another seed: delete it, "
                "or name another file"
            )
        return cls(Path(file), asked, factors, rounds)

    def write(self) -> None:
        if self.file is not None:
            noted = {"asked": self.asked, "factors": self.factors, "rounds": self.rounds}
            write_text(self.file, json.dumps(noted, indent=2))


def _moves(
    names: Sequence[str], factors: Mapping[str, float], seed: int, number: int
) -> list[dict[str, float]]:
    """The moves of one round, as factors of all groups that were moved."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)

    def below(most: int) -> int:
        return int(torch.randint(most, (1,), generator=generator))

    found = []
    most = min(MOST, len(names) // 2)
    for _ in range(TRIED):
        dearer, cheaper = 1 + below(most), 1 + below(most)
        drawn = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
        move = dict(factors)
        for place, name in enumerate(drawn[: dearer + cheaper]):
            move[name] = move.get(name, 1.0) * (STEP if place < dearer else 1 / STEP)
        found.append(move)
    return found


def _times(scores: Scores, factors: Mapping[str, float]) -> Scores:
    found = {name: values * factors.get(name, 1.0) for name, values in scores.items()}
    criterion = f"local({scores.criterion})" if factors else scores.criterion
    return Scores(found, criterion=criterion, ranking=scores.ranking)
