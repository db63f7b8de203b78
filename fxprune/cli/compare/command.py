"""``fxprune compare``: options as they are typed, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxprune.cli.compare import data as comparison_data
from fxprune.cli.compare import results
from fxprune.cli.compare.comparison import Comparison, run
from fxprune.cli.compare.grids import grid
from fxprune.errors import CalibrationError, CriterionError, SelectionError
from fxprune.groups.kinds import DEFAULT_KINDS


def compare(
    model_spec: str,
    criteria: str = "random,magnitude,taylor",
    ratios: str = "0.2",
    text: str | None = None,
    evals: Sequence[str] = (),
    *,
    out: str | Path,
    lengths: str = "128",
    windows: str = "64",
    seeds: int = 1,
    samples: str | None = None,
    length: str | None = None,
    ranking: str | None = None,
    normalise: str | None = None,
    target: str | None = None,
    kinds: Sequence[str] = (",".join(DEFAULT_KINDS),),
    aggregate: str | None = None,
    compensate: str = "auto",
    written: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Run every combination of some options on one model and equal data.

    The options are those of ``fxprune compare``; those that take several values have them in one
    string, with commas between, and None is the default of the criterion or the checkpoint.
    Further ones are fields of :class:`fxprune.PruneConfig`.

    Raises:
        FxpruneError: whatever is refused.
    """
    axes: dict[str, Sequence[Any]] = {
        "pruning_ratio": _names("ratios", ratios, SelectionError),
        "kinds": [tuple(_names("kinds", each, SelectionError)) for each in kinds],
        "ranking": _several("ranking", ranking),
        "normalise": _several("normalise", normalise),
        "target": [None if each == "none" else each for each in _several("for", target)],
        "calibration_samples": [None] if samples is None else _numbers("samples", samples),
        "calibration_lengths": [None] if length is None else _numbers("length", length),
        "criterion": _names("criteria", criteria, CriterionError),
        "written_samples": [None] if written is None else _numbers("written", written),
        "compensation": _names("compensate", compensate, SelectionError),
    }
    aggregates = [] if aggregate is None else _names("aggregate", aggregate, CriterionError)
    configurations = grid(axes, aggregates, seeds, **options)
    at = _numbers("lengths", lengths)
    if min(at) < 2:
        raise CalibrationError(f"lengths has {min(at)}: windows need at least 2 tokens")
    most = _numbers("windows", windows)
    if min(most) < 0:
        raise CalibrationError(f"windows is {min(most)}: at least 1, or 0 for all")
    if len(most) not in (1, len(at)):
        raise CalibrationError(f"windows has {len(most)} numbers for {len(at)} lengths")
    limits = most * len(at) if len(most) == 1 else most
    results.check_folder(Path(out))
    data = comparison_data.read(text, evals)
    return run(
        model_spec,
        configurations,
        data,
        out,
        lengths=dict(zip(at, (limit or None for limit in limits), strict=True)),
        device=device,
        dtype=dtype,
        progress=progress,
    )


def _names(option: str, given: str, error: type[Exception]) -> list[str]:
    found = [part.strip() for part in given.split(",") if part.strip()]
    if not found:
        raise error(f"no {option} given: name at least one")
    return found


def _several(option: str, given: str | None) -> Sequence[str | None]:
    return [None] if given is None else _names(option, given, SelectionError)


def _numbers(option: str, given: str) -> list[int]:
    found = []
    for part in _names(option, given, SelectionError):
        try:
            found.append(int(part))
        except ValueError as error:
            raise SelectionError(f"{option} has {part!r}, which is not a number") from error
    return found
