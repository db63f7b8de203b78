"""Two plans, the second for what the first leaves, as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxprune.errors import DepthError, FxpruneError, PlanError, ShrinkError
from fxprune.hf.open import architecture
from fxprune.hf.shrink.shrink import shrink
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.plan import Plan
from fxprune.rewrite.compose import whole
from fxprune.rewrite.history import Step, begun
from fxprune.rewrite.planned import planned
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace


def then(first: Plan, second: Plan, traced: Traced) -> Plan:
    """See :meth:`fxprune.Plan.then`.

    Raises:
        PlanError: one of the two is for another model, or the model's groups and branches cannot
            say what is left.
    """
    step = Step.of(*planned(traced, first), first)
    again = trace(rewrite(traced, first), traced.args, traced.kwargs)
    try:
        following = Step.of(*planned(again, second), second)
    except (PlanError, DepthError) as error:
        following = _of_the_model(first, second, traced, error)
    return whole(begun(traced.original or traced, step, following))


def _of_the_model(first: Plan, second: Plan, traced: Traced, error: FxpruneError) -> Step:
    """The second step where the first left a model of transformers, in the names of the original.

    Raises:
        PlanError: it did not leave what the second plan is for.
    """
    if not architecture.is_transformers(traced.module):
        raise PlanError(str(error)) from error
    original: Any = traced.module
    blank = architecture.build(original.config, architecture=type(original).__name__)
    try:
        small, names = shrink(blank, first, share=True), Names(shortened(blank, first.removed))
    except ShrinkError as failed:
        raise PlanError(f"{error} (and as a model of transformers: {failed})") from failed
    second.check_model(small)
    again = trace(small)
    step = Step.of(*planned(again, second), second)
    plan = replace(
        second,
        removed=tuple(_unit(names, name) for name in second.removed),
        biases=tuple(map(names.original, second.biases)),
    )
    return Step(
        plan,
        {names.original(name): shape for name, shape in step.shapes.items()},
        frozenset(map(names.original, step.parameters)),
        {(names.original(name), axis): units for (name, axis), units in step.stays.items()},
        frozenset(map(names.original, step.dropped)),
    )


def _unit(names: Names, name: str) -> str:
    """The name of a branch or block in the original."""
    place, _, kind = name.rpartition(":")
    return f"{names.original(place)}:{kind}"
