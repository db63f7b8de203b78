"""What the commands left behind: the plan, the figures before and after, the losses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fxprune.errors import CheckpointError
from fxprune.hf.folder.graph_folder import PLAN
from fxprune.measure.report import Measurement
from fxprune.recover.history import JSON
from fxprune.recover.runs import FACTS, REPORT


@dataclass(frozen=True)
class Pruned:
    """The report of ``fxprune prune``.

    Attributes:
        before: costs of the original.
        after: costs of the pruned model.
        notes: how they were measured.
    """

    before: Measurement
    after: Measurement
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovered:
    """The report of ``fxprune recover``.

    Attributes:
        before: perplexity by text, before training.
        after: perplexity by text, after it.
        log: file of the losses, where it is.
        notes: how it was trained and measured.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    log: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The runs that made a folder, as far as they left reports."""

    pruned: Pruned | None = None
    recovered: Recovered | None = None


def read_runs(folder: Path) -> Runs:
    """Read the reports beside a pruned model, or in the folder of the command that it lies in.

    A recovered model is in the folder of its run, whose report names the model it began with.

    Raises:
        CheckpointError: a report is damaged.
    """
    report, outer = folder / REPORT, folder.resolve().parent
    if not report.is_file() and any((outer / name).is_file() for name in (FACTS, PLAN)):
        report = outer / REPORT
    if not report.is_file():
        return Runs()
    content = _read(report)
    if "perplexity" not in content:
        return Runs(pruned=_pruned(content, report))
    recovered = _recovered(content, report)
    began = Path(str(content.get("model", ""))).expanduser() / REPORT
    pruned = None
    if began.is_file() and "perplexity" not in (first := _read(began)):
        pruned = _pruned(first, began)
    return Runs(pruned, recovered)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); remove it or write it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a report of fxprune; remove it or write it again")
    return content


def _pruned(content: Mapping[str, Any], file: Path) -> Pruned:
    try:
        names = [each.name for each in fields(Measurement)]
        pair = [
            Measurement(**{name: _number(content[when].get(name)) for name in names})
            for when in ("before", "after")
        ]
        notes = tuple(str(line) for line in content.get("measured", ()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a report of fxprune prune ({error!r})") from error
    return Pruned(pair[0], pair[1], notes)


def _recovered(content: Mapping[str, Any], file: Path) -> Recovered:
    try:
        found = content["perplexity"]
        before, after = (
            {str(name): float(value) for name, value in found[when].items()}
            for when in ("before", "after")
        )
        notes = (
            f"{content['method']}, {content['trained']:,} parameters trained, weights of step "
            f"{content['step']}",
            f"perplexity: {found['windows']} windows of {found['length']} tokens at most",
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a report of fxprune recover ({error!r})") from error
    log = file.with_name(JSON)
    return Recovered(before, after, log if log.is_file() else None, notes)


def _number(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r:.40} is not a number")
    return value
