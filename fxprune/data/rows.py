"""From records to rows of tokens: documents packed without a gap, an instruction to each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fxprune.data.loss import IGNORED
from fxprune.data.records import Document, Instruction, Records
from fxprune.data.text import tokens
from fxprune.errors import RecoveryError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int]]  # "input_ids" and "labels", of equal length

# Alpaca's templates (Taori et al. 2023), for an instruction alone and for one with an input.
PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def make_rows(
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    length: int,
    *,
    train_on_prompt: bool = False,
    keep_rest: bool = False,
) -> tuple[list[Row], tuple[str, ...]]:
    """Tokenise records into rows to train on.

    Documents are joined, the end-of-text token (if the tokenizer has one) behind each, and cut into
    rows of ``length`` tokens; what is left at the end is lost, or a shorter row. An instruction is
    one row: prompt, response and end of text, cut at ``length``. Packed rows come first. No other
    special tokens.

    Args:
        tokenizer: of the model.
        records: documents, instructions or both.
        length: tokens in a row of documents, and the most in a row of an instruction.
        train_on_prompt: whether the loss counts the tokens of prompts too.
        keep_rest: whether what is left of documents at the end makes a shorter row.

    Returns:
        The rows, and notes: a line for each instruction that is left out since no token of its
        response has a place, and one for how many responses are cut.

    Raises:
        RecoveryError: ``length`` is below 2, or there is no row.
    """
    if length < 2:
        raise RecoveryError(f"rows of {length} token(s): nothing to predict, take at least 2")
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    documents = [record for record in records.records if isinstance(record, Document)]
    instructions = [record for record in records.records if isinstance(record, Instruction)]
    packed, packed_count = _packed(tokenizer, documents, length, ends, keep_rest)
    answers, notes, count = _answers(tokenizer, instructions, length, ends, train_on_prompt)
    rows, count = packed + answers, packed_count + count
    if not rows:
        raise RecoveryError(
            f"{records.name}: no row of {length} tokens comes out of {len(documents)} document(s) "
            f"and {len(instructions)} instruction(s) with {count} tokens in all; take a smaller "
            "length, or more text"
        )
    return rows, notes


def collate(rows: Sequence[Row], pad: int = 0) -> dict[str, torch.Tensor]:
    """A batch of rows, the shorter ones filled up on the right.

    Args:
        rows: at least one.
        pad: token id to fill up with; attention and loss leave it out.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, each int64 of shape (rows, longest).
    """
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.full(shape, pad),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for place, row in enumerate(rows):
        size = len(row["input_ids"])
        assert len(row["labels"]) == size
        batch["input_ids"][place, :size] = torch.tensor(row["input_ids"])
        batch["labels"][place, :size] = torch.tensor(row["labels"])
        batch["attention_mask"][place, :size] = 1
    return batch


def _packed(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[Document],
    length: int,
    ends: list[int],
    keep_rest: bool,
) -> tuple[list[Row], int]:
    """Rows, and how many tokens there are with those that are lost."""
    rows: list[Row] = []
    count = 0
    waiting: list[int] = []
    for document in documents:
        ids = [*tokens(tokenizer, document.text).tolist(), *ends]
        count += len(ids)
        waiting += ids
        full = len(waiting) - len(waiting) % length
        for start in range(0, full, length):
            row = waiting[start : start + length]
            rows.append({"input_ids": row, "labels": list(row)})
        del waiting[:full]
    if keep_rest and len(waiting) > 1:
        rows.append({"input_ids": waiting, "labels": list(waiting)})
    return rows, count


def _answers(
    tokenizer: PreTrainedTokenizerBase,
    instructions: list[Instruction],
    length: int,
    ends: list[int],
    train_on_prompt: bool,
) -> tuple[list[Row], tuple[str, ...], int]:
    """A row for each instruction whose response has a place; notes; tokens of all of them."""
    rows: list[Row] = []
    notes = []
    count = cut = 0
    for record in instructions:
        # Apart, so that no token belongs to both and the mask is exact.
        prompt = tokens(tokenizer, _prompt(record)).tolist()
        response = tokens(tokenizer, record.output).tolist()
        ids = [*prompt, *response, *ends]
        count += len(ids)
        if len(prompt) >= length or not response:
            notes.append(
                f"{record.where}: left out, none of its {len(response)} response tokens has a "
                f"place in {length} behind a prompt of {len(prompt)}"
            )
            continue
        hidden = 0 if train_on_prompt else len(prompt)
        labels = [IGNORED] * hidden + ids[hidden:]
        rows.append({"input_ids": ids[:length], "labels": labels[:length]})
        cut += len(prompt) + len(response) > length
    if cut:
        notes.append(f"{cut} of {len(instructions)} responses are cut at {length} tokens")
    return rows, tuple(notes), count


def _prompt(record: Instruction) -> str:
    template = PROMPT_WITH_INPUT if record.input.strip() else PROMPT
    return template.format(instruction=record.instruction, input=record.input)
