"""A failure made small: fewer steps, fewer outputs, fewer groups, fewer units."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from tests.fuzz.check import Outcome, Stop, attempt, fidelity, try_plan, try_shrink
from tests.fuzz.grammar import DOMAINS, subject_of
from tests.fuzz.plans import random_plan
from tests.fuzz.program import Program
from tests.fuzz.script import script, zoo_script
from tests.fuzz.subject import Captured, Spec, capture
from tests.fuzz.tasks import Failure, Task, program_of, short, subject_for

Tried = tuple[Outcome, Spec | None, int]
"""What came of it, by which plan, and at which of the inputs."""


def reduced(failure: Failure) -> str:
    """A program of its own that shows a failure, made as small as dropping parts makes it."""
    task = failure.task
    if task.family not in DOMAINS:
        spec = failure.spec
        if spec is not None:
            case, twin = _captured(task, None)
            spec = _fewer(failure, case, twin, spec)
        return zoo_script(task.family, task.low, spec, failure.outcome)
    program = program_of(task)
    start = _fails(program, failure)
    if start is None:
        return f"task {task.index} did not fail again"
    outcome, spec, place = start
    for smaller in _smaller(program, lambda p: _fails(p, failure) is not None):
        program = smaller
    outcome, spec, place = _fails(program, failure) or start
    if spec is not None:
        case, twin = _captured(task, program)
        spec = _fewer(failure, case, twin, spec)
    return script(program, task.low and spec is not None, spec, place, outcome)


def _captured(
    task: Task, program: Program | None, low: bool = True
) -> tuple[Captured, Captured | None]:
    subject = subject_for(task) if program is None else subject_of(program)
    assert subject is not None
    case = attempt("trace", lambda: capture(subject))
    if not (low and task.low):
        return case, None
    return attempt("trace in bfloat16", lambda: capture(subject, torch.bfloat16)), case


def _fails(program: Program, failure: Failure) -> Tried | None:
    """How a program fails in the same way, if it does."""
    same = short(failure.outcome)
    try:
        case, twin = _captured(failure.task, program, low=failure.spec is not None)
    except Stop as stop:
        return (stop.outcome, None, 0) if short(stop.outcome) == same else None
    except Exception:
        return None  # the model itself does not run so
    if failure.spec is None:
        for place, outcome in enumerate(fidelity(case)):
            if short(outcome) == same:
                return outcome, None, min(place, len(case.inputs) - 1)
        return None
    for spec in _plans(case, failure.spec):
        for place in range(len(case.inputs)):
            outcome = try_plan(
                case, spec, [case.inputs[i] for i in dict.fromkeys((0, place))], twin
            )
            if short(outcome) == same:
                return outcome, spec, place
    return None


def _plans(case: Captured, spec: Spec) -> Iterator[Spec]:
    """The plan, as far as the model has its groups; then others."""
    try:
        sizes = {group.name: group.size for group in case.groups(spec.removed)}
        kept = {n: u for n, u in spec.kept.items() if max(u) < sizes.get(n, 0)}
        if kept:
            yield Spec(kept, spec.removed)
    except Exception:
        pass  # it has not these branches
    draw = random.Random(0)
    for _ in range(4):
        yield random_plan(case, draw)


def _smaller(program: Program, fails: Callable[[Program], bool]) -> Iterator[Program]:
    """Ever smaller programs that still fail."""
    again = True
    while again:
        again = False
        trials = [replace(program, outputs=program.outputs[:1])] if program.outputs[1:] else []
        trials += [replace(program, outputs=program.outputs[i : i + 1])
                   for i in range(1, len(program.outputs))]  # fmt: skip
        trials += [program.without({step.key}) for step in reversed(program.steps)]
        for trial in trials:
            if fails(trial):
                program, again = trial, True
                yield program
                break


def _fewer(failure: Failure, case: Captured, twin: Captured | None, spec: Spec) -> Spec:
    """The plan with fewer groups and more units left that still fails."""
    same = short(failure.outcome)
    graph_sizes = {group.name: group.size for group in case.groups(spec.removed)}

    def fails(trial: Spec) -> bool:
        if same.what == "shrink":
            return short(try_shrink(case, trial)) == same
        for place in range(len(case.inputs)):
            chosen = [case.inputs[i] for i in dict.fromkeys((0, place))]
            if short(try_plan(case, trial, chosen, twin)) == same:
                return True
        return False

    for name in list(spec.kept):
        trial = replace(spec, kept={n: u for n, u in spec.kept.items() if n != name})
        if (trial.kept or trial.removed) and fails(trial):
            spec = trial
    for name, units in spec.kept.items():
        lost = [u for u in range(graph_sizes[name]) if u not in units]
        for unit in lost:
            left = tuple(u for u in range(graph_sizes[name]) if u != unit)
            trial = replace(spec, kept={**spec.kept, name: left})
            if len(lost) > 1 and fails(trial):
                spec = trial
                break
    return spec
