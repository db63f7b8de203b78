"""Where calibration data comes from: text, JSONL, token files and names of ``datasets``."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fxprune.data.text import Text, crops, read, record_of
from fxprune.errors import CalibrationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "datasets:"
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def source(spec: str | Path) -> Text | torch.Tensor:
    """Read what a user names as data.

    Args:
        spec: a text file; a ``.jsonl`` file, see :func:`fxprune.data.text.read`; token ids in a
            ``.safetensors`` or ``.npy`` file, integers of shape (N, L); or
            ``datasets:NAME[:CONFIG][:SPLIT][:COLUMN]``, read with the ``datasets`` library. A part
            that is left empty or out is the default: no config, ``train``, ``text``. A split may be
            a slice, ``train[:500]``.

    Returns:
        Text, or token ids as int64 of shape (N, L).

    Raises:
        CalibrationError: it cannot be read, is empty, or holds something else; says what to do.
    """
    if str(spec).startswith(PREFIX):
        return _dataset(str(spec))
    path = Path(spec)
    if path.suffix in PICKLES:
        raise CalibrationError(
            f"{path} is a pickle, which may run code and is not read: save the token ids as "
            ".safetensors or .npy, integers of shape (N, L)"
        )
    if path.suffix == ".npy":
        return _checked(path, _npy(path))
    if path.suffix == ".safetensors":
        return _checked(path, _safetensors(path))
    return read(path)


def draw(
    tokenizer: PreTrainedTokenizerBase,
    data: Text | torch.Tensor,
    count: int = 10,
    length: int = 128,
    seed: int = 0,
) -> torch.Tensor:
    """Random crops to calibrate on, out of text or of token ids.

    From text as :func:`fxprune.data.text.crops` does. From token ids: different rows as long as
    there are any, each cropped at a random place. A larger ``count`` begins with the crops of a
    smaller.

    Args:
        tokenizer: of the model.
        data: what :func:`source` gave.
        count: number of crops.
        length: tokens in each.
        seed: the same seed gives the same crops.

    Returns:
        int64 tensor of shape (count, length).

    Raises:
        CalibrationError: nothing is long enough, or a token id is not of this tokenizer.
    """
    if isinstance(data, Text):
        return crops(tokenizer, data, count, length, seed)
    rows, width = data.shape
    if count < 1 or length < 2:
        raise CalibrationError(f"{count} crops of {length} tokens: take at least 1 of at least 2")
    if width < length:
        raise CalibrationError(
            f"the rows of token ids have {width} tokens, {length} are needed; "
            "give longer rows, or ask for shorter samples"
        )
    largest, vocabulary = int(data.max()), len(tokenizer)
    if largest >= vocabulary:
        raise CalibrationError(
            f"token id {largest} is not one of the tokenizer's {vocabulary}: the token ids were "
            "made with another tokenizer"
        )
    random_numbers = random.Random(seed)
    order = random_numbers.sample(range(rows), rows)
    found = []
    for place in range(count):
        row = data[order[place % rows]]
        start = random_numbers.randint(0, width - length)
        found.append(row[start : start + length])
    return torch.stack(found)


def _npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{path} cannot be read as a numpy array: {error}") from error


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"{path} cannot be read as safetensors: {error}") from error
    found = next(iter(tensors.values())) if len(tensors) == 1 else tensors.get("input_ids")
    if found is None:
        raise CalibrationError(
            f"{path} has {len(tensors)} tensors and none is called input_ids: say which by its name"
        )
    return found.numpy()


def _checked(path: Path, array: Any) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise CalibrationError(f"{path} holds {array.dtype}: token ids must be integers")
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2:
        raise CalibrationError(
            f"{path} has shape {array.shape}: token ids must have shape (N, L), "
            "at least one row of at least 2 tokens"
        )
    ids = torch.from_numpy(array.astype(np.int64))
    if (ids < 0).any():
        raise CalibrationError(f"{path} holds the token id {int(ids.min())}: none may be negative")
    return ids


def _dataset(spec: str) -> Text:
    rows, column = dataset_rows(spec)
    if not column and "text" not in rows.column_names and holds_chats(rows.column_names):
        found = [record_of(row) for row in chat_rows(rows)]
        chats = tuple(record for record in found if record is not None)
        return Text(spec.removeprefix(PREFIX), chats)
    column = column or "text"
    values = dataset_column(spec, rows, column)
    records = [record for record in values if isinstance(record, str) and record.strip()]
    if not records:
        raise CalibrationError(f"{spec!r} has no text in its column {column!r}")
    return Text(spec.removeprefix(PREFIX), tuple(records))


def holds_chats(columns: Sequence[str]) -> bool:
    """Whether columns are those of conversations or of instructions."""
    return not {"messages", "conversations"}.isdisjoint(columns) or (
        {"instruction", "output"} <= set(columns)
    )


def chat_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of such a data set with these columns alone."""
    known = ("messages", "conversations", "instruction", "input", "output")
    kept = [each for each in known if each in rows.column_names]
    for values in zip(*(rows[each] for each in kept), strict=True):
        yield dict(zip(kept, values, strict=True))


def dataset_rows(spec: str) -> tuple[Any, str]:
    """Load what ``datasets:NAME[:CONFIG][:SPLIT][:COLUMN]`` names.

    Returns:
        The rows as the ``datasets`` library gives them, and the column, "" where none is named.

    Raises:
        CalibrationError: the name is not of this form, the library is missing, or it cannot load.
    """
    # A colon inside the brackets of a slice, train[:500], separates nothing.
    name, *others = re.split(r":(?![^\[\]]*\])", spec.removeprefix(PREFIX))
    if not name or len(others) > 3:
        raise CalibrationError(
            f"{spec!r} is not of the form datasets:NAME[:CONFIG][:SPLIT][:COLUMN]"
        )
    config, split, column = (*others, "", "", "")[:3]
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise CalibrationError(
            f"{spec!r} needs the datasets library: pip install datasets, or give a text file"
        ) from error
    try:
        rows = library.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # network, unknown names, splits, configs, scripts, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CalibrationError(
            f"{spec!r} cannot be loaded: {lines[0]}. Check the name, config and split; without a "
            'network, give a .jsonl file with a "text" on each line'
        ) from error
    return rows, column


def dataset_column(spec: str, rows: Any, column: str) -> Any:
    """The values of a column of what :func:`dataset_rows` gave, an iterable.

    Raises:
        CalibrationError: there is no such column.
    """
    if column not in rows.column_names:
        raise CalibrationError(
            f"{spec!r} has no column {column!r}: it has {', '.join(rows.column_names)}"
        )
    return rows[column]
