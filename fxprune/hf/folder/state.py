"""What a run in pieces has found so far, beside the folder that it will write."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fxprune.compensate.mended import Mended
from fxprune.data.calibrate import told_apart
from fxprune.data.loader import give_back
from fxprune.depth import Removal
from fxprune.errors import CheckpointError
from fxprune.files import check_room, write_text, writing
from fxprune.groups.dependency import discover
from fxprune.hf.folder.weights import Weights
from fxprune.importance.collect import DATA
from fxprune.importance.criterion import Criterion, Needs
from fxprune.importance.scores import Scores
from fxprune.stream.forecast import forecast
from fxprune.trace.ones import admit_ones
from fxprune.trace.traced import Traced

_KEY, _SCORES, _REMOVAL, _MENDED = "run.json", "scores.safetensors", "removal.json", "mended"


class State:
    """A folder that a run fills stage by stage, so that one that was killed goes on.

    Args:
        folder: where; None holds nothing.

    Attributes:
        again: whether an earlier run of the same kind was found.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.again = folder, False
        self._lock: FileLock | None = None

    def begin(self, key: Mapping[str, Any]) -> None:
        """Take up an earlier run, or begin a new one.

        Args:
            key: what makes two runs the same, as JSON has it. What is left of another is removed.

        Raises:
            CheckpointError: the folder is something else, or another process is at work on it.
        """
        if self.folder is None:
            return
        self._take()
        text = json.dumps(key, indent=1, sort_keys=True, default=str) + "\n"
        file = self.folder / _KEY
        if self.folder.exists():
            if not file.is_file():
                raise CheckpointError(
                    f"{self.folder} exists and is not of a run in pieces: remove it"
                )
            self.again = file.read_text(encoding="utf-8") == text
            if not self.again:
                self._remove()
        for left in self.folder.glob(".*") if self.again else ():  # of a kill while saving
            shutil.rmtree(left, ignore_errors=True)
        if not self.again:
            made = self.folder.with_name(self.folder.name + ".new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            write_text(made / _KEY, text)
            made.rename(self.folder)

    def scores(self, found: Scores | None = None) -> Scores | None:
        """The scores of units; those that are given are held."""
        if self.folder is None:
            return found
        file = self.folder / _SCORES
        if found is not None:
            found.save(file)
        elif file.is_file():
            return Scores.load(file)
        return found

    def removal(self, found: Removal | None = None) -> Removal | None:
        """The choice of depth, likewise."""
        if self.folder is None:
            return found
        file = self.folder / _REMOVAL
        if found is not None:
            found.scores.save(self.folder / "blocks.safetensors")
            held = [found.removed, found.at_removal, found.criterion]
            write_text(file, json.dumps(held) + "\n")
        elif file.is_file():
            removed, at_removal, criterion = json.loads(file.read_text(encoding="utf-8"))
            scores = Scores.load(self.folder / "blocks.safetensors")
            return Removal(tuple(removed), scores, tuple(at_removal), criterion)
        return found

    def mended(self) -> Mended:
        """The new values of tensors."""
        return Mended(None if self.folder is None else self.folder / _MENDED)

    def held(self) -> int:
        """Bytes that are held."""
        if self.folder is None:
            return 0
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def _take(self) -> None:
        """Lock the folder until the end; of one process again and again, for a call may fail."""
        assert self.folder is not None
        file = self.folder.with_name(f"{self.folder.name}.lock")
        with writing(self.folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(file, is_singleton=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise CheckpointError(
                    f"another run is at work on {self.folder}: wait for it, or write elsewhere"
                ) from None

    def end(self) -> None:
        """Remove what is held, once the result is written."""
        self._remove()
        if self._lock is not None:
            self._lock.release(force=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _remove(self) -> None:
        if self.folder is not None and self.folder.exists():
            gone = self.folder.with_name(self.folder.name + ".old")  # whole, or not there
            shutil.rmtree(gone, ignore_errors=True)
            self.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def begun(
    source: Weights | None,
    traced: Traced,
    config: Any,
    criterion: Criterion | None,
    folder: str | Path | None,
    data: tuple[Any, Any],
) -> State:
    """What an earlier run in pieces has found, once the weights and room are seen to be there.

    Args:
        source: where the weights are; None for a model in memory, which leaves no state.
        traced: the model.
        config: a :class:`fxprune.PruneConfig`.
        criterion: of units.
        folder: where the state is; None keeps none.
        data: what the criterion sees, and what compensation.

    Raises:
        CheckpointError: they are not.
        CalibrationError: the limit of memory is too low.
    """
    if source is None:
        return State()
    source.check(traced)
    needs: Needs = frozenset() if criterion is None else criterion.needs & DATA
    found = forecast(discover(traced), config, needs, *data)
    if config.max_memory is not None:
        source.memory = found.memory(config.max_memory)
    kept = State(None if folder is None else Path(folder))
    if source.memory is not None:
        spilt = max(0, found.stream - source.memory)
        beside = tempfile.gettempdir() if kept.folder is None else kept.folder
        check_room(beside, spilt, "what goes from piece to piece")
    admit_ones(traced)
    give_back()  # capturing takes more than the graph
    key = {"config": config.to_dict(), "data": told_apart(data), "torch": torch.__version__}
    kept.begin(source.key() | key)
    source.scratch = kept.folder
    if kept.folder is not None:
        wanted = found.written(float(config.pruning_ratio or 0)) - kept.held()
        check_room(kept.folder, wanted, "the result, and what is mended until it is whole,")
    return kept
