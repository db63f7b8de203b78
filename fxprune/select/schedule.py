"""Schedules: the ratios of pruning in several steps, at once or while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxprune.errors import SelectionError
from fxprune.select.budget import Budget, check_ratio, fraction


@dataclass(frozen=True)
class Gradual:
    """Which part of a model is to be gone after which steps of its training.

    From ``begin`` to ``end`` the ratio rises as a cube root falls, quickly at first: after step
    ``t`` it is ``s * (1 - (1 - (t - begin) / (end - begin)) ** 3)`` (Zhu & Gupta, arXiv 1710.01878,
    eq. 1, which begins with nothing).

    Attributes:
        pruning_ratio: fraction of the parameters of the whole original that is gone in the end, in
            [0, 1), or a percentage.
        begin: the step of training that it rises from.
        end: the step after which all of it is gone.
        every: steps between two prunings.
        at: instead of all these, numbers of steps to the ratios after them.

    Raises:
        SelectionError: a ratio is outside [0, 1) or falls, steps are out of order, or it is said
            twice how much goes when.
    """

    pruning_ratio: float | str | None = None
    begin: int = 0
    end: int | None = None
    every: int = 100
    at: Mapping[int, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if bool(self.at) == (self.end is not None):
            raise SelectionError("give either end= (with begin= and every=), or the steps with at=")
        given = {int(step): fraction("at", ratio) for step, ratio in sorted(self.at.items())}
        object.__setattr__(self, "at", given)
        final = max(given.values(), default=None) if given else self.pruning_ratio
        if given and self.pruning_ratio is not None:
            raise SelectionError("the last of at= says what goes in all: leave out pruning_ratio=")
        object.__setattr__(self, "pruning_ratio", fraction("pruning_ratio", final))
        if self.end is not None and (not 0 <= self.begin < self.end or self.every < 1):
            raise SelectionError(
                f"begin={self.begin}, end={self.end}, every={self.every}: steps of training, in "
                "this order, and at least 1 between two"
            )
        if given and (min(given) < 1 or list(given.values()) != sorted(given.values())):
            raise SelectionError(f"at={given}: steps from 1 on, with ratios that do not fall")

    @property
    def steps(self) -> dict[int, float]:
        """The numbers of the steps, ascending, to the ratios after them."""
        if self.end is None:
            return {step: float(ratio) for step, ratio in self.at.items()}
        final, length = float(self.pruning_ratio or 0.0), self.end - self.begin
        steps = [*range(self.begin + self.every, self.end, self.every), self.end]
        return {t: final * (1 - (1 - (t - self.begin) / length) ** 3) for t in steps}


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
