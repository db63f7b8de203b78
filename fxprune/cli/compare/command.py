"""``fxprune compare``: options as they are typed, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from fxprune.cli.compare import data as comparison_data
from fxprune.cli.compare import results
from fxprune.cli.compare.comparison import Comparison, run
from fxprune.cli.compare.grids import grid
from fxprune.errors import CalibrationError, CriterionError, SelectionError

T = TypeVar("T")
NONE = "none"


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
    samples: str = "10",
    length: str = "128",
    ranking: str = "local",
    normalise: str | None = None,
    cost_aware: bool | None = None,
    kinds: Sequence[str] = ("mlp,attention",),
    aggregate: str | None = None,
    compensate: str = NONE,
    compensate_samples: int | None = None,
    keep_first: int = 0,
    keep_last: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Run every combination of some options on one model and equal data.

    The options are those of ``fxprune compare``; those that take several values have them in one
    string, with commas between, and None is the default of the criterion or the checkpoint.

    Raises:
        FxpruneError: whatever is refused.
    """
    configurations = grid(
        criterion=_names("criteria", criteria, CriterionError),
        ratio=_numbers("ratios", ratios, float),
        ranking=_names("ranking", ranking, SelectionError),
        normalise=[None] if normalise is None else _names("normalise", normalise, SelectionError),
        kinds=[tuple(_names("kinds", each, SelectionError)) for each in kinds],
        aggregate=[None] if aggregate is None else _names("aggregate", aggregate, CriterionError),
        compensate=[
            None if method == NONE else method
            for method in _names("compensate", compensate, SelectionError)
        ],
        samples=_numbers("samples", samples, int),
        length=_numbers("length", length, int),
        compensation_samples=compensate_samples,
        cost_aware=cost_aware,
        seeds=seeds,
        keep_first=keep_first,
        keep_last=keep_last,
    )
    at = _numbers("lengths", lengths, int)
    if min(at) < 2:
        raise CalibrationError(f"lengths has {min(at)}: windows need at least 2 tokens")
    most = _numbers("windows", windows, int)
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


def _numbers(option: str, given: str, kind: Callable[[str], T]) -> list[T]:
    found = []
    for part in _names(option, given, SelectionError):
        try:
            found.append(kind(part))
        except ValueError as error:
            raise SelectionError(f"{option} has {part!r}, which is not a number") from error
    return found
