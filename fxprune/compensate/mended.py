"""New values of tensors, in memory or in a folder that outlives the process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxprune.compensate.report import Compensated
from fxprune.errors import CheckpointError
from fxprune.files import replacing


class Mended:
    """What compensation of a model in pieces gives, consumer by consumer.

    Args:
        folder: where each consumer's tensors are written when it is done, so that a run that was
            killed goes on behind the last; None keeps them in memory.

    Attributes:
        done: what was written of each consumer, by its name.

    Raises:
        CheckpointError: a file of the folder is damaged.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.done: dict[str, Mapping[str, object]] = {}
        self._places: dict[str, Path | Tensor] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as there:
                    about = there.metadata()
                    self._places.update(dict.fromkeys(there.keys(), file))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file} is damaged ({error}): remove {folder}") from error
            self.done[about["of"]] = json.loads(about["report"])

    def get(self, name: str) -> Tensor | None:
        """A tensor by its canonical name; None if it keeps its value."""
        place = self._places.get(name)
        if not isinstance(place, Path):
            return place
        with safe_open(place, framework="pt") as there:
            found: Tensor = there.get_tensor(name)
        return found

    def put(self, of: str, tensors: Mapping[str, Tensor], report: Mapping[str, object]) -> None:
        """Hold what a step gave.

        Args:
            of: names the step.
            tensors: the new values, by canonical name.
            report: what to know of it later, as JSON has it.

        Raises:
            CheckpointError: it cannot be written.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self._places.update({name: tensor.clone() for name, tensor in held.items()})
        else:
            file = self.folder / f"{len(self.done):06d}.safetensors"
            with replacing(file) as temporary:
                save_file(held, temporary, {"of": of, "report": json.dumps(report)})
            self._places.update(dict.fromkeys(held, file))
        self.done[of] = report

    def known(self, of: str) -> Compensated | None:
        """What was done to a consumer before; None if nothing was."""
        report = self.done.get(of)
        return None if report is None else Compensated(**report)  # type: ignore[arg-type]

    def note(self, done: Compensated, tensors: Mapping[str, Tensor]) -> None:
        """Hold the tensors of a consumer."""
        self.put(done.name, tensors, asdict(done))
