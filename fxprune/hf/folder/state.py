"""What a run in pieces has found so far, beside the folder that it will write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxprune.compensate.mended import Mended
from fxprune.depth import Removal
from fxprune.errors import CheckpointError
from fxprune.files import write_text
from fxprune.importance.scores import Scores
from fxprune.trace.digests import digest

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

    def begin(self, key: Mapping[str, Any]) -> None:
        """Take up an earlier run, or begin a new one.

        Args:
            key: what makes two runs the same, as JSON has it. What is left of another is removed.

        Raises:
            CheckpointError: the folder is something else.
        """
        if self.folder is None:
            return
        text = json.dumps(key, indent=1, sort_keys=True, default=str) + "\n"
        file = self.folder / _KEY
        if self.folder.exists():
            if not file.is_file():
                raise CheckpointError(
                    f"{self.folder} exists and is not of a run in pieces: remove it"
                )
            self.again = file.read_text(encoding="utf-8") == text
            if not self.again:
                shutil.rmtree(self.folder)
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

    def end(self) -> None:
        """Remove what is held, once the result is written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def told_apart(data: Any) -> str:
    """A digest of calibration data: batches of tensors, or one."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            for key, each in value.items():
                collect(f"{name}.{key}", each)
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                collect(f"{name}.{place}", each)

    collect("", data)
    return digest(found)
