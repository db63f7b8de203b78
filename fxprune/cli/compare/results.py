"""Results on disk: one JSON line per measured configuration, added as it comes."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxprune.cli.compare.labels import label
from fxprune.config import PruneConfig
from fxprune.errors import CheckpointError, FxpruneError
from fxprune.files import check_writable, write_text
from fxprune.hf.folder.folders import taken

FILE = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """What one configuration with one draw gave.

    Attributes:
        key: identifies configuration, model, data and version.
        config: None for the model as it was.
        parameters: of the whole model.
        perplexity: by column, such as ``text.txt @ 128``.
        seconds: by stage: ``estimate`` (of the pass that all its criteria shared), ``select``,
            ``rewrite``, ``compensate``, ``measure``.
        losses: by column, the mean loss of each window.
    """

    key: str
    config: PruneConfig | None
    parameters: int
    perplexity: dict[str, float]
    seconds: dict[str, float]
    losses: dict[str, list[float]] = field(default_factory=dict)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds something other than an earlier comparison.

    Raises:
        CheckpointError: it does, or nothing can be written there.
    """
    check_writable(folder)
    if taken(folder) and not (folder / FILE).is_file():
        raise CheckpointError(
            f"{folder} exists and is not of an earlier comparison: it is left alone; "
            "give another with --out"
        )


def load(folder: Path) -> dict[str, Result]:
    """The results in a folder, by key. A last line that was cut off is dropped.

    Raises:
        CheckpointError: another line is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    whole, _, cut = file.read_text(encoding="utf-8").rpartition("\n")
    if cut:  # a run ended while it wrote; what it wrote is not missed
        write_text(file, whole + "\n" if whole else "")
    found = {}
    for number, line in enumerate(whole.split("\n") if whole else (), start=1):
        try:
            result = _decode(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, FxpruneError) as error:
            raise CheckpointError(
                f"{file} line {number} is damaged ({error}); remove the line to measure it again"
            ) from error
        found[result.key] = result
    return found


def add(folder: Path, result: Result) -> None:
    """Add one line, in one write, so that a run that ends leaves whole lines."""
    line = json.dumps(_encode(result), allow_nan=False) + "\n"
    with (folder / FILE).open("ab", buffering=0) as stream:
        stream.write(line.encode())
        os.fsync(stream.fileno())


def _encode(result: Result) -> dict[str, Any]:
    # Infinity and NaN are not JSON; as words they are, and float() reads them.
    def said(value: float) -> float | str:
        return value if math.isfinite(value) else str(value)

    numbers = {n: said(v) for n, v in result.perplexity.items()}
    return {
        "key": result.key,
        "label": label(result.config) if result.config else "dense",
        "config": result.config and result.config.to_dict(),
        "parameters": result.parameters,
        "perplexity": numbers,
        "seconds": result.seconds,
        "losses": {n: [said(v) for v in each] for n, each in result.losses.items()},
    }


def _decode(row: dict[str, Any]) -> Result:
    options = row["config"]
    return Result(
        row["key"],
        None if options is None else PruneConfig.from_dict(options),
        int(row["parameters"]),
        {name: float(value) for name, value in row["perplexity"].items()},
        {name: float(value) for name, value in row["seconds"].items()},
        {name: [float(value) for value in each] for name, each in row.get("losses", {}).items()},
    )
