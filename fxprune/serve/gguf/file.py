"""GGUF files read and written, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type
from numpy.typing import NDArray

from fxprune.errors import ServeError
from fxprune.files import replacing
from fxprune.progress import track

KINDS = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
_FILE_TYPES = {
    Kind.F32: gguf.LlamaFileType.ALL_F32,
    Kind.F16: gguf.LlamaFileType.MOSTLY_F16,
    Kind.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Kind.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
_OF_TORCH = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_INTEGERS = (Type.UINT32, Type.INT32, Type.UINT64, Type.INT64, Type.UINT16, Type.INT16)


class Entry(NamedTuple):
    """A value of the metadata, with its type and, of an array, that of what it holds."""

    value: Any
    type: Type
    of: Type | None = None


Metadata = dict[str, Entry]


class Blank(NamedTuple):
    """A tensor to be written: its shape as torch has it, and what makes its values, in float32."""

    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]
    kind: Kind | None = None


def opened(path: str | os.PathLike[str]) -> gguf.GGUFReader:
    """A file, mapped into memory.

    Raises:
        ServeError: it is no GGUF file.
    """
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ServeError(f"{path} cannot be read as GGUF: {error}") from error


def metadata(reader: gguf.GGUFReader) -> Metadata:
    """The metadata of a file, without what the format itself counts."""
    found = {}
    for key, each in reader.fields.items():
        if not key.startswith(("GGUF.", "split.")):
            of = each.types[-1] if each.types[0] is Type.ARRAY else None
            found[key] = Entry(each.contents(), each.types[0], of)
    return found


def values_of(tensor: gguf.ReaderTensor) -> NDArray[Any]:
    """The values of a tensor in a file, in float32 and in the shape that torch has."""
    found: NDArray[Any] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found.astype(np.float32, copy=False)


def integers(value: int | Sequence[int]) -> Entry:
    """A number, or one for each layer, as metadata has them."""
    if isinstance(value, int):
        return Entry(value, Type.UINT32)
    return Entry(list(value), Type.ARRAY, Type.INT32)


def renamed(entries: Metadata, old: str, new: str) -> Metadata:
    """Metadata for another architecture."""
    return {
        f"{new}.{key.removeprefix(f'{old}.')}" if key.startswith(f"{old}.") else key: entry
        for key, entry in entries.items()
    }


def kind_of(dtype: str, tensor: torch.Tensor) -> Kind:
    """The type of matrices; ``auto`` is the one that the values have.

    Raises:
        ServeError: there is no such type.
    """
    if dtype == "auto":
        dtype = _OF_TORCH.get(tensor.dtype, "f16")
    if dtype not in KINDS:
        raise ServeError(f"dtype {dtype!r}: choose from auto, {', '.join(KINDS)}")
    return KINDS[dtype]


def fitting(kind: Kind, shape: Sequence[int]) -> Kind:
    """The type in which a tensor is written: vectors in float32, rows in whole blocks."""
    if len(shape) < 2:
        return Kind.F32
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if shape[-1] % block == 0 else Kind.F16


def write(
    path: Path,
    architecture: str,
    entries: Mapping[str, Entry],
    tensors: Mapping[str, Blank],
    kind: Kind,
    progress: bool = False,
) -> None:
    """Write a file, one tensor in memory at a time. It appears whole or not at all.

    Args:
        path: the file.
        architecture: its name in GGUF.
        entries: the metadata.
        tensors: by name, in order.
        kind: type of matrices, where a tensor has none of its own.
        progress: show a progress bar.

    Raises:
        ServeError: a value does not fit into the type of the file.
        CheckpointError: the file cannot be written.
    """
    kinds = {n: fitting(each.kind or kind, each.shape) for n, each in tensors.items()}
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        for key, entry in entries.items():
            if key not in ("general.architecture", "general.file_type"):
                writer.add_key_value(key, entry.value, entry.type, entry.of)
        writer.add_file_type(_FILE_TYPES.get(kind, gguf.LlamaFileType.GUESSED))
        for name, each in tensors.items():
            size = gguf.quant_shape_to_byte_shape(each.shape, kinds[name])
            raw = np.dtype(np.uint8)
            writer.add_tensor_info(name, size, raw, int(np.prod(size)), kinds[name])
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in track(list(tensors), "writing", progress):
                writer.write_tensor_data(_encoded(name, tensors[name], kinds[name]))
        finally:
            writer.close()


def _encoded(name: str, blank: Blank, kind: Kind) -> NDArray[Any]:
    values = blank.make()
    if tuple(values.shape) != blank.shape:
        raise ServeError(f"{name} has shape {tuple(values.shape)} and not {blank.shape}")
    if values.dtype == np.uint8:  # encoded already
        return values
    made: NDArray[Any] = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), kind)
    if kind is Kind.F16 and not np.isfinite(made).all():
        raise ServeError(f"{name} has values beyond float16: take dtype bf16 or f32")
    return made
