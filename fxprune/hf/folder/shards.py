"""Safetensors files read and written one tensor at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import CheckpointError
from fxprune.hf.open import guard

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = "model.safetensors"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def shards(folder: Path) -> list[Path]:
    """The files of a checkpoint.

    Raises:
        CheckpointError: there are none, or the index is damaged or leads out of the folder.
    """
    guard.check_folder(folder)
    index = folder / guard.INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(guard.read_index(index).values()))]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {guard.INDEX}")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A file of tensors, of which each is read when it is asked for.

    Raises:
        CheckpointError: it is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as there:
            yield there
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error


def names(file: Path) -> list[str]:
    """The tensors in a file.

    Raises:
        CheckpointError: it is missing, truncated or damaged.
    """
    with opened(file) as there:
        return list(there.keys())


def blanks(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, on ``meta``.

    Raises:
        CheckpointError: it is missing, truncated or damaged, or of numbers that are quantised.
    """
    known = {code: dtype for dtype, code in _DTYPES.items()}
    found = {}
    with opened(file) as there:
        for name in there.keys():  # noqa: SIM118
            part = there.get_slice(name)
            if (kind := part.get_dtype()) not in known:
                raise CheckpointError(
                    f"{file}: {name!r} is of {kind}, which has no value without its scale: "
                    "dequantise the checkpoint first"
                )
            found[name] = torch.empty(part.get_shape(), dtype=known[kind], device="meta")
    return found


def will_read(file: Path, names: Sequence[str]) -> None:
    """Tell the system which tensors of a file are read next, where it takes such advice."""
    if not hasattr(os, "posix_fadvise"):
        return
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(size))
        for name in names:
            start, end = header[name]["data_offsets"]
            where = 8 + size + start, end - start
            os.posix_fadvise(stream.fileno(), *where, os.POSIX_FADV_WILLNEED)


def write_stream(
    file: Path,
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor: Callable[[str], torch.Tensor],
) -> int:
    """Write a file of tensors that are made one after the other.

    The bytes are those of ``safetensors.torch.save_file``: a header of JSON with the place of each
    tensor, padded to 8 bytes; the tensors, those of larger numbers first, then by name.

    Args:
        file: where.
        kinds: dtype and shape of each.
        tensor: gives a tensor by its name; called once for each, in the order of the file.

    Returns:
        Bytes of all tensors.
    """
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        dtype, shape = kinds[name]
        if dtype not in _DTYPES:
            raise CheckpointError(f"{name} is of {dtype}, which cannot be sliced here")
        end = start + dtype.itemsize * int(torch.Size(shape).numel())
        place = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        header[name], start = place, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            value = tensor(name)
            if (value.dtype, tuple(value.shape)) != kinds[name]:
                raise CheckpointError(
                    f"{name} is {tuple(value.shape)}, {value.dtype}, and {kinds[name]} was expected"
                )
            stream.write(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return start
