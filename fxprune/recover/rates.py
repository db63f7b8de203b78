"""The learning rate that a few steps speak for: a range test (Smith, arXiv 1506.01186).

Other than there, every rate starts from the same weights, with the schedule of the run in small,
and is judged by the loss on what is not trained on: in so few steps the loss of a batch says more
of the batch than of the rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from fxprune.errors import RecoveryError
from fxprune.files import write_text

FIND = "find"
FILE = "rates.json"
FACTORS = (1 / 3, 1, 10 / 3, 10, 100 / 3)  # of the method's own rate
SHARE, LEAST, MOST = 0.05, 10, 50  # of the steps of the run, for each rate


def check(given: float | str | None) -> None:
    """Refuse what is no learning rate.

    Raises:
        RecoveryError: it is a word other than :data:`FIND`, or not above 0.
    """
    if isinstance(given, str) and given != FIND:
        raise RecoveryError(f"learning-rate is {given!r}: a number, or {FIND}")
    if isinstance(given, int | float) and not given > 0:
        raise RecoveryError(f"learning-rate is {given}: above 0")


def steps(planned: int) -> int:
    """How many steps each rate is tried for, in a run of so many."""
    return min(planned, max(LEAST, min(MOST, round(SHARE * planned))))


def find(own: float, attempt: Callable[[float], float], file: Path | None) -> dict[float, float]:
    """Validation losses by learning rate, from the lowest up to the first that makes it worse.

    Args:
        own: the method's own rate.
        attempt: gives the loss on the validation data after a few steps with a rate.
        file: where they are kept, for a run that goes on; None for nowhere.

    Raises:
        RecoveryError: no rate leads to a finite loss.
    """
    if file is not None and file.is_file():
        return {float(rate): loss for rate, loss in json.loads(file.read_text("utf-8")).items()}
    found: dict[float, float] = {}
    for rate in (float(f"{factor * own:.1g}") for factor in FACTORS):
        loss = attempt(rate)
        worse = bool(found) and not loss < min(found.values())
        if math.isfinite(loss):
            found[rate] = loss
        if worse:
            break
    if not found:
        raise RecoveryError("no learning rate that was tried gives a finite loss: give one")
    if file is not None:
        write_text(file, json.dumps(found) + "\n")
    return found
