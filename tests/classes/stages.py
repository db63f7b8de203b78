"""Every stage of the library tried on one type of model."""

from __future__ import annotations

import random
import re
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import fxprune
from fxprune.groups.kinds import DEFAULT_KINDS
from fxprune.plan import Plan
from tests.classes import build, stock
from tests.classes.attempt import Mismatch, NothingThere, Stage, attempt, message
from tests.classes.coverage import coverage
from tests.classes.lines import forbidding
from tests.classes.second import by_value

STOCK_KINDS = ("mlp", "attention", "query", "expert", "state", "conv", "latent")
PLANS = 2


@dataclass
class Trial:
    """One type of model on its way through the stages.

    Attributes:
        model_type: of the model.
        facts: what was found besides verdicts: ``class``, ``layers``, ``kinds``, ``frozen``,
            ``cov``, ``uncovered``, ``forbids``.
    """

    model_type: str
    facts: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: Any = None
    traced: Any = None
    graph: Any = None

    def stages(self) -> Iterator[Stage]:
        """Everything, in order; what follows a failure that leaves nothing to try is left out."""
        for name, function in (
            ("build", self.build),
            ("trace", self.trace),
            ("discover", self.discover),
        ):
            stage, _ = attempt(name, function)
            yield stage
            if stage.verdict != "ok":
                return
        stage, _ = attempt("coverage", self.coverage)
        yield stage
        yield from self.width("width", DEFAULT_KINDS)
        yield from self.width("all", None)
        yield from self.depth()
        yield from self.stock()

    def build(self) -> str:
        """A model that runs, twice with the same result."""
        try:
            self.model = build.build(self.model_type)
            self.inputs = build.inputs(self.model)
            self.facts["class"] = type(self.model).__name__
            self.facts["parameters"] = sum(p.numel() for p in self.model.parameters())
            given = build.plainly(self.model, self.inputs)
            before = [stock.logits(self.model, given) for _ in range(2)]
        except Exception as error:
            why = f"{type(error).__name__}: {message(error)}"
            lacks = re.search(r"requires the (\w+) library", why)
            raise NothingThere(f"needs {lacks[1]}" if lacks else why) from error
        self.logits = before[0]
        if not all(each.isfinite().all() for each in before):
            return "logits are not finite"
        return "" if torch.equal(*before) else "it differs from itself"

    def trace(self) -> str:
        """The capture; the note is what it warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", fxprune.FxpruneWarning)
            self.traced = fxprune.trace(self.model, kwargs=self.inputs)
        ours = [w.message for w in caught if issubclass(w.category, fxprune.FxpruneWarning)]
        return "; ".join(message(each) for each in ours if isinstance(each, Warning))

    def discover(self) -> str:
        """The groups, counted by kind."""
        self.graph = fxprune.discover(self.traced)
        self.facts["kinds"] = dict(Counter(group.kind for group in self.graph.groups))
        reasons: dict[str, Counter[str]] = {}
        for group in self.graph.frozen:
            reasons.setdefault(group.kind, Counter())[str(group.reason)] += 1
        self.facts["frozen"] = {kind: dict(c.most_common(3)) for kind, c in reasons.items()}
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.facts["kinds"].items()))

    def coverage(self) -> str:
        """The share of the matrices of layers that MLPs, heads and experts cover."""
        share, why = coverage(self.graph)
        self.facts["cov"], self.facts["uncovered"] = round(share, 4), why
        return f"{share:.2f}"

    def width(self, name: str, kinds: tuple[str, ...] | None) -> Iterator[Stage]:
        """Random plans over these kinds (all if None), each proven, one of them twice."""
        for place in range(PLANS):
            made: dict[str, Any] = {}

            def proof(place: int = place, made: dict[str, Any] = made) -> str:
                plan = self.random_plan(kinds, place)
                small = fxprune.rewrite(self.traced, plan)
                made.update(plan=plan, small=small)
                error = fxprune.verify(self.traced, small, plan).relative_error
                return f"{error:.0e}, logits move by {self.moved(small):.0%}"

            stage, _ = attempt(f"{name} {place}", proof, proof=True)
            yield stage
            if stage.verdict == "none":
                return
            if place == 0 and made:
                yield self.second(name, made["small"], made["plan"])

    def moved(self, small: Any) -> float:
        """How far a plan moves the logits, of their scale: a proof that sees nothing says 0."""
        change = stock.logits(small, self.inputs) - self.logits
        return float(change.abs().max() / self.logits.abs().max())

    def second(self, name: str, small: Any, plan: Plan, blocks: tuple[str, ...] = ()) -> Stage:
        """The second oracle's word on a smaller graph.

        A recurrence starts from zeros, which that oracle takes for entries that are left, and then
        counts them in a norm. Where it disagrees, but not about the same plan without the groups
        that are averaged in norms, it has nothing to say.
        """

        def run() -> str:
            try:
                return by_value(self.model, small, blocks, self.inputs)
            except Mismatch as mismatch:
                units = {n: u for n, u in plan.kept.items() if not self.graph[n].normalised}
                if not units or len(units) == len(plan.kept):
                    raise
                less = fxprune.rewrite(self.traced, Plan.of(self.graph, units))
                found = by_value(self.model, less, blocks, self.inputs)
                raise NothingThere(f"{mismatch}; {found} without what norms average") from None

        return attempt(f"{name} by value", run)[0]

    def random_plan(self, kinds: tuple[str, ...] | None, place: int) -> Plan:
        """Every group of these kinds loses some units, at most half; experts stay enough to choose.

        Raises:
            NothingThere: there is no such group.
        """
        draw = random.Random(zlib.crc32(f"{self.model_type} {kinds} {place}".encode()))
        kept = {}
        for group in self.graph.groups:
            if group.size > group.least and (kinds is None or group.kind in kinds):
                half = max(group.least, -(-group.size // 2))
                stay = draw.randint(half, group.size - 1)
                kept[group.name] = tuple(sorted(draw.sample(range(group.size), stay)))
        if not kept:
            raise NothingThere(f"no groups of {', '.join(kinds or ('any kind',))}")
        return Plan.of(self.graph, kept)

    def depth(self) -> Iterator[Stage]:
        """One block removed, and whether the shorter model is a stock one."""
        draw = random.Random(zlib.crc32(self.model_type.encode()))
        made: dict[str, Any] = {}

        def proof() -> str:
            found = fxprune.find_branches(self.traced)
            blocks = found.of("block")
            self.facts["branches"] = dict(Counter(unit.kind for unit in found.units.values()))
            if not blocks:
                refused = {why for name, why in found.refused.items() if name.endswith(":block")}
                raise NothingThere("; ".join(sorted(refused)) or "no residual branches in blocks")
            block = draw.choice(blocks)
            shorter = fxprune.bypass(self.traced, [block.name])
            plan = Plan.of(fxprune.discover(shorter), {})
            small = fxprune.rewrite(self.traced, plan)
            made.update(plan=plan, small=small, place=block.place)
            error = fxprune.verify(self.traced, small, plan).relative_error
            return f"{block.name}, {error:.0e}, logits move by {self.moved(small):.0%}"

        stage, _ = attempt("depth", proof, proof=True)
        yield stage
        if made:
            yield self.second("depth", made["small"], made["plan"], (made["place"],))
            yield self.back("depth stock", lambda: made["plan"])

    def stock(self) -> Iterator[Stage]:
        """Plans through the class and the disk: an even one a kind, and an uneven one.

        The uneven one takes of MLPs and heads those that an even plan can take.
        """
        stage, scores = attempt(
            "scores", lambda: fxprune.estimate(self.model, self.graph, fxprune.Magnitude())
        )
        yield stage
        if stage.verdict != "ok":
            return
        said = []
        for kind in STOCK_KINDS:
            stage = self.back(f"{kind} stock", lambda k=kind: stock.even(self.graph, scores, k))
            if stage.verdict == "refused" and kind in ("attention", "query"):
                lines = self.facts.setdefault("forbids", [])
                lines.append(forbidding(self.model, stage.detail) or stage.detail)
            yield stage
            if stage.verdict == "ok" and kind in ("mlp", "attention"):
                said.append(kind)
        yield self.back("uneven stock", lambda: stock.uneven(self.graph, scores, said))

    def back(self, name: str, plan: Callable[[], Plan]) -> Stage:
        """What comes back of a plan, ``s`` or ``h`` in the note."""
        kind = build.loader(self.model)
        return attempt(name, lambda: stock.comes_back(kind, self.traced, plan(), self.inputs))[0]


def facts_of(model_type: str) -> tuple[dict[str, Any], list[Stage], float]:
    """All of a type at once, in this process: facts, stages, seconds."""
    start, trial = time.perf_counter(), Trial(model_type)
    stages = list(trial.stages())
    return trial.facts, stages, time.perf_counter() - start
