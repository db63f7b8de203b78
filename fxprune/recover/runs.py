"""The folder of a run: what it was asked, its checkpoints, and whether it may go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxprune.errors import RecoveryError
from fxprune.files import check_writable, write_text, writing
from fxprune.hf.folder.folders import taken

CHECKPOINTS, FACTS, ADAPTER = "checkpoints", "run.json", "adapter"
STATE = "trainer_state.json"
MODEL, REPORT = "model", "report.json"  # what fxprune recover leaves in its folder


def begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note in a new folder what is asked of the run; in an old one, see that it is the same.

    Args:
        folder: of the run.
        asked: all that decides what comes out: model, data, method, options.

    Raises:
        RecoveryError: the folder holds another run, or something else.
    """
    file = folder / FACTS
    plain = json.loads(json.dumps(asked))
    if not file.is_file():
        check_target(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(plain, indent=1) + "\n")
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecoveryError(f"{file} is damaged ({error}): remove {folder}") from error
    if differ := [k for k in plain if not isinstance(before, dict) or before.get(k) != plain[k]]:
        raise RecoveryError(
            f"{folder} holds a run with another {', '.join(differ)}: give another folder, or "
            "remove it"
        )


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something other than a run.

    Raises:
        RecoveryError: it does.
    """
    check_writable(folder)
    if taken(folder) and not (folder / FACTS).is_file():
        raise RecoveryError(
            f"{folder} exists and holds no run of recovery: it is left alone; give another"
        )


def check_new(folder: Path) -> None:
    """Refuse a folder that exists: a run of other weights is not gone on with.

    Raises:
        RecoveryError: it does.
    """
    if taken(folder):
        raise RecoveryError(f"{folder} exists: it is left alone; remove it, or take another --out")


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    found = [(step, path) for path in checkpoints.glob("checkpoint-*") if (step := _step(path))]
    return max(found)[1] if found else None


def forget_partial(checkpoints: Path) -> None:
    """Remove what a killed run had not written to its end."""
    for path in checkpoints.glob("checkpoint-*"):
        if not _step(path):
            shutil.rmtree(path, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    """The step of a whole checkpoint, 0 for one that is not: its state is written last."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    step = state.get("global_step") if isinstance(state, dict) else None
    return step if isinstance(step, int) and checkpoint.name.endswith(f"-{step}") else 0
