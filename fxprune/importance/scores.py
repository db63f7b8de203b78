"""Scores: one number per unit of every group, saved and planned from again for free."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxprune.errors import CheckpointError
from fxprune.files import replacing

FORMAT = "fxprune-scores"
VERSION = "1"


class Scores(dict[str, Tensor]):
    """Group name to a float32 tensor of shape (size,); low scores are removed first.

    Args:
        scores: the tensors by group name.
        criterion: the criterion as text, such as ``"Taylor(aggregate='sum')"``.
        ranking: options of a global ranking that go with the scores, see
            :attr:`fxprune.Criterion.ranking`.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] = (),
        criterion: str | None = None,
        ranking: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(scores)
        self.criterion = criterion
        self.ranking = dict(ranking or {})

    def __repr__(self) -> str:
        units = sum(scores.numel() for scores in self.values())
        return f"Scores({len(self)} groups, {units} units, criterion={self.criterion!r})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores to a safetensors file. An interrupted save leaves an older file."""
        path = Path(path)
        metadata = {"format": FORMAT, "version": VERSION}
        if self.criterion is not None:
            metadata["criterion"] = self.criterion
        if self.ranking:
            metadata["ranking"] = json.dumps(self.ranking)
        with replacing(path) as temporary:
            # Cloned, because safetensors refuses tensors that share storage.
            tensors = {name: scores.detach().cpu().clone() for name, scores in self.items()}
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read scores that :meth:`save` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the scores {path}: {error}") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} holds tensors, but no fxprune scores")
        if metadata.get("version") != VERSION:
            raise CheckpointError(f"{path}: version {metadata.get('version')!r} is not supported")
        try:
            ranking = json.loads(metadata.get("ranking", "{}"))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return cls(tensors, metadata.get("criterion"), ranking)
