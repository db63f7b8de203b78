"""Schedules: the ratios of pruning in several steps."""

from __future__ import annotations

from fxprune.errors import SelectionError
from fxprune.select.budget import check_ratio


def schedule(steps: int, final_ratio: float) -> tuple[float, ...]:
    """The ratio after each step, rising linearly as in LLM-Pruner and Torch-Pruning.

    Every ratio is of the original model: step ``t`` reaches ``final_ratio * t / steps``.

    Args:
        steps: number of steps, at least 1.
        final_ratio: the ratio after the last one, in [0, 1).

    Raises:
        SelectionError: there is no step, or the ratio is outside [0, 1).
    """
    if steps < 1:
        raise SelectionError(f"steps={steps}: a schedule has at least one step")
    check_ratio("final_ratio", final_ratio)
    return (*(final_ratio * t / steps for t in range(1, steps)), final_ratio)
