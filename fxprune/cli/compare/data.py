"""What a comparison calibrates and measures on, and that the two are not the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fxprune.data import sources, text
from fxprune.data.text import Text
from fxprune.errors import CalibrationError


@dataclass(frozen=True, eq=False)
class Data:
    """Data of a comparison.

    Attributes:
        name: what to show for the calibration data.
        calibration: text, or token ids of shape (N, L).
        evaluations: texts to measure on, by the name to show.
    """

    name: str
    calibration: Text | torch.Tensor
    evaluations: dict[str, Text]


def read(calibration: str | Path | None, evaluations: Sequence[str | Path] = ()) -> Data:
    """Read all data, and see that none of it serves twice.

    Args:
        calibration: what :func:`fxprune.data.sources.source` reads; ``self`` for what the model
            writes; None takes prose that comes with Python.
        evaluations: texts to measure on. Without one, half of the calibration text measures.

    Raises:
        CalibrationError: something cannot be read or is empty, an evaluation is not text, or a file
            or a record both calibrates and measures.
    """
    paths = [Path(each).resolve() for each in evaluations]
    if calibration is not None and Path(calibration).resolve() in paths:
        raise CalibrationError(
            f"{calibration} cannot both calibrate and measure; give another text to measure on"
        )
    if calibration is None:
        given, half = text.builtin()
        if not evaluations:
            return Data(given.name, given, {half.name: half})
        return Data(given.name, given, _evaluations(given, evaluations))
    if str(calibration) == "self" and not Path(calibration).exists():
        if not evaluations:
            raise CalibrationError("calibrated on what the model writes: give a text to measure on")
        return Data(text.OWN.name, text.OWN, _evaluations(text.OWN, evaluations))
    found = sources.source(calibration)
    name = found.name if isinstance(found, Text) else Path(calibration).name
    if evaluations:
        return Data(name, found, _evaluations(found, evaluations))
    if not isinstance(found, Text):
        raise CalibrationError(f"{name} holds token ids to calibrate on: give a text to measure on")
    first, second = text.split(found)
    return Data(first.name, first, {second.name: second})


def _evaluations(
    calibration: Text | torch.Tensor, evaluations: Sequence[str | Path]
) -> dict[str, Text]:
    found = text.read_all(evaluations, _measured)
    seen = set(_plain(calibration.records)) if isinstance(calibration, Text) else set()
    for each in found:
        if shared := [record for record in _plain(each.records) if record in seen]:
            raise CalibrationError(
                f"{each.name}: {len(shared)} of its {len(each.records)} records are in the "
                f"calibration text too, the first begins {shared[0][:40]!r}; take them out of one "
                "of the two"
            )
    return {each.name: each for each in found}


def _measured(spec: str | Path) -> Text:
    found = sources.source(spec)
    if not isinstance(found, Text):
        raise CalibrationError(f"{spec} holds token ids: give text to measure on")
    return found


def _plain(records: Iterable[str]) -> list[str]:
    """The records without differences in white space."""
    return [" ".join(record.split()) for record in records]
