"""Schedules: the ratios of pruning in several steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxprune.errors import SelectionError
from fxprune.select.budget import Budget, check_ratio, fraction


def schedule(steps: int, final_ratio: float) -> tuple[float, ...]:
    """The ratio after each step, rising linearly as in LLM-Pruner and Torch-Pruning.

    Every ratio is of the original model: step ``t`` reaches ``final_ratio * t / steps``.

    Args:
        steps: number of steps, at least 1.
        final_ratio: the ratio after the last one, in [0, 1).

    Raises:
        SelectionError: there is no step, or the ratio is outside [0, 1).
    """
    if not isinstance(steps, int) or steps < 1:
        raise SelectionError(f"steps={steps}: a schedule has at least one step")
    check_ratio("final_ratio", final_ratio)
    return (*(final_ratio * t / steps for t in range(1, steps)), final_ratio)


def goals(
    steps: int, pruning_ratio: float | str | None = None, budget: Budget | None = None
) -> tuple[dict[str, Any], ...]:
    """What each step asks of :func:`fxprune.select`, the last one all of it.

    Args:
        steps: number of steps, at least 1.
        pruning_ratio: fraction of the parameters to remove.
        budget: instead of that. In several steps its limits must be fractions.

    Raises:
        SelectionError: not one of the two, no step, or an absolute limit in several steps.
    """
    if (pruning_ratio is None) == (budget is None):
        raise SelectionError("give either pruning_ratio or budget")
    if pruning_ratio is not None:
        ratio = fraction("pruning_ratio", pruning_ratio)
        return tuple({"pruning_ratio": each} for each in schedule(steps, ratio))
    assert budget is not None
    schedule(steps, 0.0)  # refuses a number of steps that is none
    for name, value in budget.limits.items():
        if steps > 1 and value > 1:
            raise SelectionError(
                f"{name}={value:g} is absolute; in {steps} steps give a fraction of the model's"
            )
    made = []
    for number in range(1, steps):
        share = number / steps
        limits: dict[str, Any] = {
            name: 1 - (1 - value) * share for name, value in budget.limits.items()
        }
        limits["others"] = {name: limits.pop(name) for name in budget.others}
        units = None if budget.removed is None else budget.removed * share
        made.append({"budget": replace(budget, **limits, units=units)})
    return (*made, {"budget": budget})
