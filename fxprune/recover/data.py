"""From what a user gives as data to the rows that are trained and validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.data import overlap
from fxprune.data.records import Records, from_text, read_records
from fxprune.data.rows import Row, make_rows
from fxprune.data.split import split
from fxprune.data.text import Text
from fxprune.errors import RecoveryError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Data = str | Path | Text | Records | torch.Tensor | Sequence[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """What a run trains on.

    Attributes:
        training: rows of token ids and labels, or examples of a user's own.
        validation: likewise; may be empty.
        notes: what was left out, and why, a line each.
    """

    training: Sequence[Any]
    validation: Sequence[Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        length: tokens in a row.
        validation: the fraction of the documents to validate on, or other data for that.
        evaluation: texts that will be measured on; training data must have nothing of them.
        drop_overlap: leave such training documents out instead of refusing them.
        bad_rows: ``refuse`` or ``skip`` rows that cannot be read.
        train_on_prompt: whether instructions count in the loss too, not their responses alone.
        seed: of the split.
    """

    length: int = 256
    validation: float | Data = 0.05
    evaluation: Sequence[Text] = ()
    drop_overlap: bool = False
    bad_rows: str = "refuse"
    train_on_prompt: bool = False
    seed: int = 0


def prepare(data: Data, tokenizer: PreTrainedTokenizerBase | None, reading: Reading) -> Rows:
    """Read, check, split and tokenise.

    Args:
        data: a file or name that :func:`read_records` takes, text, records, token ids (N, L), or
            examples of a user's own, which are taken as they are.
        tokenizer: of the model; needed for text.
        reading: how.

    Raises:
        RecoveryError: see there; or text without a tokenizer.
    """
    fraction = reading.validation if isinstance(reading.validation, int | float) else 0.0
    if not _is_text(data):
        if reading.evaluation:
            raise RecoveryError(
                "evaluation= is compared with text to train on, and these are not text: "
                "leave it out"
            )
        training, validation = _cut(_examples(data), fraction, reading.seed)
        notes: list[str] = []
    else:
        if tokenizer is None:
            raise RecoveryError("text becomes tokens by the model's tokenizer: give tokenizer=")
        records = read(data, reading)
        if reading.evaluation:
            if reading.drop_overlap:
                records = overlap.drop(records, reading.evaluation)
            else:
                overlap.check(records, reading.evaluation)
        first, second = split(records, fraction, reading.seed)
        training, validation, notes = [], [], list(records.skipped)
        for part, rows in ((first, training), (second, validation)):
            if part.records:
                made, left_out = make_rows(
                    tokenizer,
                    part,
                    reading.length,
                    train_on_prompt=reading.train_on_prompt,
                    keep_rest=part is second,
                )
                rows += made
                notes += left_out
    if not isinstance(reading.validation, int | float):
        other = replace(reading, validation=0.0, evaluation=())
        given = prepare(reading.validation, tokenizer, other)
        validation = list(given.training)
        notes += given.notes
    if not training:
        raise RecoveryError("there is nothing to train on")
    return Rows(training, validation, tuple(notes))


def _is_text(data: Data) -> bool:
    return isinstance(data, str | Path | Text | Records)


def read(data: Any, reading: Reading) -> Records:
    """Text as records.

    Raises:
        RecoveryError: it cannot be read, or is no text.
    """
    if not _is_text(data):
        raise RecoveryError("this data is no text: give rows of it")
    if isinstance(data, Records):
        return data
    return from_text(data) if isinstance(data, Text) else read_records(data, reading.bad_rows)


def _examples(data: Any) -> Sequence[Any]:
    if not isinstance(data, torch.Tensor):
        return data  # type: ignore[no-any-return]
    if data.dim() != 2 or data.is_floating_point() or data.shape[1] < 2:
        raise RecoveryError(
            f"token ids are integers of shape (rows, length), not {tuple(data.shape)} of "
            f"{data.dtype}"
        )
    rows: list[Row] = [{"input_ids": ids, "labels": list(ids)} for ids in data.tolist()]
    return rows


def _cut(examples: Sequence[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Split examples at random."""
    if not 0 <= fraction <= 0.5:
        raise RecoveryError(f"validation is {fraction}: a fraction from 0 to 0.5, or other data")
    count = min(len(examples) - 1, max(1, round(fraction * len(examples)))) if fraction else 0
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:count])
    return (
        [example for place, example in enumerate(examples) if place not in held],
        [examples[place] for place in sorted(held)],
    )
