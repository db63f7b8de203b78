"""What a folder of weights may hold: it may come from anybody."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fxprune.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def check_names(names: Iterable[Any], file: Path) -> None:
    """Every name is that of a file right beside ``file``.

    Raises:
        CheckpointError: one leads out of the folder, also by a link.
    """
    folder = file.resolve().parent
    for name in names:
        plain = isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")
        if not plain or (folder / name).resolve().parent != folder:
            raise CheckpointError(
                f"{file} names {name!r}, which is not a file of its folder: it is not opened"
            )


def check_folder(path: Path) -> None:
    """Refuse pickles and an index that leads elsewhere.

    Raises:
        CheckpointError: the folder holds either.
    """
    for file in sorted(path.iterdir()):
        if file.suffix in _PICKLES:
            raise CheckpointError(
                f"{file} may be a pickle, which can run anything: it is not opened; save the model "
                "as safetensors"
            )
    index = path / INDEX
    if index.is_file():
        check_names(set(read_index(index).values()), index)


def read_index(file: Path) -> dict[str, str]:
    """Which file of a sharded checkpoint each tensor is in.

    Raises:
        CheckpointError: the file is no such index.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) for pair in found.items() for name in pair):
            raise TypeError("weight_map must map names to names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error
    made: dict[str, str] = found
    return made


def check_config(file: Path, tensors: int) -> None:
    """Refuse a config with more layers than there are tensors to fill them.

    Building so many, even without weights, would take all memory; so would reading the config.

    Raises:
        CheckpointError: there are more, or the file is not JSON.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error
    for name, value in _entries(data):
        if "layer" in name and type(value) is int and value > max(tensors, 1000):
            raise CheckpointError(f"{file}: {name} is {value}, and there are {tensors} tensors")


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Every named value in JSON, however deep."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield name, value
            yield from _entries(value)
    elif isinstance(data, list):
        for value in data:
            yield from _entries(value)
