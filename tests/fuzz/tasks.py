"""What a run is made of: tasks, each a model and some plans, told by its index."""

from __future__ import annotations

import collections
import functools
import random
from dataclasses import dataclass, field

import torch

from tests.fuzz.check import Outcome, Stop, attempt, fidelity, try_plan, try_shrink, unchanged
from tests.fuzz.grammar import DOMAINS, random_program, subject_of
from tests.fuzz.plans import random_plan
from tests.fuzz.program import Program
from tests.fuzz.subject import Captured, Inputs, Spec, Subject, capture, of_the_zoo
from tests.vision.families import BY_NAME as VISION
from tests.zoo import CASES

PLANS_EACH = 20


@dataclass(frozen=True)
class Task:
    """A model and the random numbers for its plans.

    Attributes:
        index: its place in the run, by which it is replayed.
        seed: of the run.
        family: a domain of generated modules, or a name of the zoo with its attention, or of the
            vision families behind ``vision/``.
        low: whether the model runs in bfloat16.
        plans: how many to try.
    """

    index: int
    seed: int
    family: str
    low: bool
    plans: int = PLANS_EACH


@dataclass
class Failure:
    """What went wrong, to be replayed and made smaller."""

    task: Task
    outcome: Outcome
    spec: Spec | None = None
    inputs: tuple[int, ...] = ()


@dataclass
class Result:
    """The outcomes of a task: of its plans, of shrinking, of the capture."""

    plans: collections.Counter[Outcome] = field(default_factory=collections.Counter)
    shrinks: collections.Counter[Outcome] = field(default_factory=collections.Counter)
    captures: collections.Counter[Outcome] = field(default_factory=collections.Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Result) -> None:
        """Count another's too."""
        self.plans += other.plans
        self.shrinks += other.shrinks
        self.captures += other.captures
        self.failures += other.failures


def families(wanted: str | None) -> list[str]:
    """The families a run takes turns among.

    Args:
        wanted: a domain, a name of the zoo (with or without its attention), ``vision`` or
            ``vision/`` and a name, ``zoo`` (with vision) or ``generated``; all if left out.

    Raises:
        ValueError: there is none.
    """
    zoo = ["-".join(case) for case in CASES] + [f"vision/{name}" for name in VISION]
    if wanted is None:
        # Two generated modules to one of the zoo.
        pairs = [(DOMAINS[(2 * i) % 5], DOMAINS[(2 * i + 1) % 5]) for i in range(len(zoo))]
        return [each for case, pair in zip(zoo, pairs, strict=True) for each in (case, *pair)]
    some = {"zoo": zoo, "generated": list(DOMAINS)}.get(wanted)
    some = some or [
        family
        for family in (*DOMAINS, *zoo)
        if wanted in (family, family.rpartition("-")[0], family.partition("/")[0])
    ]
    if not some:
        names = dict.fromkeys(name for name, _ in CASES)
        raise ValueError(
            f"no family {wanted!r}: take zoo, vision, generated, {', '.join((*DOMAINS, *names))}"
        )
    return some


def task_of(index: int, seed: int, among: list[str]) -> Task:
    """The task of an index."""
    return Task(index, seed, among[index % len(among)], index % 7 == 3)


def program_of(task: Task) -> Program:
    """The generated module of a task: the first of its seeds that makes a model that runs."""
    for again in range(100):
        program = random_program(1_000_003 * task.seed + 101 * task.index + again, task.family)
        if subject_of(program) is not None:
            return program
    raise AssertionError(f"no program of task {task.index} runs")


def subject_for(task: Task) -> Subject:
    """The model of a task."""
    if task.family not in DOMAINS:
        return of_the_zoo(task.family)
    subject = subject_of(program_of(task))
    assert subject is not None
    return subject


@functools.cache
def _of_the_zoo(family: str) -> tuple[Captured, list[Outcome]]:
    """One capture for all tasks of a family, and what came of it."""
    case = capture(of_the_zoo(family))
    return case, list(fidelity(case))


@functools.cache
def _low(family: str) -> Captured:
    return _in_half(_of_the_zoo(family)[0].subject)


def _in_half(subject: Subject) -> Captured:
    return attempt("trace in bfloat16", lambda: capture(subject, torch.bfloat16))  # type: ignore[no-any-return]


def captures(task: Task, result: Result) -> tuple[Captured, Captured | None]:
    """The model of a task, captured: what plans are tried on, and its float32 twin if it is not.

    Raises:
        Stop: it could not be captured.
    """
    if task.family in DOMAINS:
        subject = subject_for(task)
        case = attempt("trace", lambda: capture(subject))
        outcomes = list(fidelity(case))
    else:
        case, outcomes = attempt("trace", lambda: _of_the_zoo(task.family))
    _note(result, task, outcomes)
    if not task.low or not _runs_in_half(case):
        return case, None
    return (_in_half(case.subject) if task.family in DOMAINS else _low(task.family)), case


def _note(result: Result, task: Task, outcomes: list[Outcome]) -> None:
    result.captures.update(short(o) for o in outcomes)
    result.failures += [Failure(task, o) for o in outcomes if o.failed][:1]


def _runs_in_half(case: Captured) -> bool:
    try:
        model = subject_in_half(case.subject)
        with torch.no_grad():
            model[0](*model[1][0], **model[1][1])
    except Exception:
        return False
    return True


def subject_in_half(subject: Subject) -> tuple[torch.nn.Module, Inputs]:
    """The model and its first inputs in bfloat16."""
    import copy

    from torch.utils._pytree import tree_map_only

    inputs = tree_map_only(
        torch.Tensor, lambda x: x.bfloat16() if x.is_floating_point() else x, subject.inputs[0]
    )
    return copy.deepcopy(subject.model).bfloat16(), inputs


def short(outcome: Outcome) -> Outcome:
    """Without numbers, so that alike ones are counted together."""
    detail = (
        outcome.detail.partition(":")[0].partition(";")[0] if outcome.verdict != "wrong" else ""
    )
    return Outcome(outcome.verdict, outcome.what, detail[:60])


def run_task(task: Task) -> Result:
    """Try every plan of a task."""
    torch.set_num_threads(1)
    result = Result()
    try:
        case, twin = captures(task, result)
        _note(result, task, list(unchanged(case)))
        _try_plans(task, case, twin, result)
    except Stop as stop:
        result.captures[short(stop.outcome)] += 1
        if stop.outcome.failed:
            result.failures.append(Failure(task, stop.outcome))
    return result


def _try_plans(task: Task, case: Captured, twin: Captured | None, result: Result) -> None:
    draw = random.Random(f"{task.seed}-{task.index}")
    for _ in range(task.plans):
        spec = attempt("a random plan", lambda: random_plan(case, draw))
        if not spec.kept and not spec.removed:
            continue
        places = (0, draw.randrange(1, len(case.inputs)))
        outcome = try_plan(case, spec, [case.inputs[i] for i in places], twin, draw.random() < 0.3)
        result.plans[short(outcome)] += 1
        if outcome.failed:
            result.failures.append(Failure(task, outcome, spec, places))
        if hasattr(case.model, "config") and twin is None and draw.random() < 0.15:
            outcome = try_shrink(case, spec)
            result.shrinks[short(outcome)] += 1
            if outcome.failed:
                result.failures.append(Failure(task, outcome, spec))
