"""From records to rows of tokens: documents packed without a gap, an instruction to each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fxprune.data.chat import Chat, encode, instruction, tokens
from fxprune.data.loss import IGNORED
from fxprune.data.records import Conversation, Document, Instruction, Records
from fxprune.errors import CalibrationError, RecoveryError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int]]  # "input_ids" and "labels", of equal length


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
    rows of ``length`` tokens; what is left at the end is lost, or a shorter row. An instruction or
    conversation is one row in the tokenizer's chat template, cut at ``length``; an instruction for
    a tokenizer without one, Alpaca's prompt, the response and the end of text. Packed rows come
    first. No other special tokens.

    Args:
        tokenizer: of the model.
        records: documents, instructions, conversations, or some of each.
        length: tokens in a row of documents, and the most in any other.
        train_on_prompt: whether the loss counts all tokens, not those of answers alone.
        keep_rest: whether what is left of documents at the end makes a shorter row.

    Returns:
        The rows, and notes: a line for each instruction that is left out since no token of its
        response has a place, and one for how many responses are cut.

    Raises:
        RecoveryError: ``length`` is below 2, there is no row, or the tokenizer has no chat template
            for a conversation, or one that refuses it.
    """
    if length < 2:
        raise RecoveryError(f"rows of {length} token(s): nothing to predict, take at least 2")
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    documents = [record for record in records.records if isinstance(record, Document)]
    others = [record for record in records.records if not isinstance(record, Document)]
    packed, packed_count = _packed(tokenizer, documents, length, ends, keep_rest)
    answers, notes, count = _answers(tokenizer, others, length, train_on_prompt)
    rows, count = packed + answers, packed_count + count
    if not rows:
        raise RecoveryError(
            f"{records.name}: no row of {length} tokens comes out of {len(documents)} document(s) "
            f"and {len(others)} instruction(s) or conversation(s) with {count} tokens in all; take "
            "a smaller length, or more text"
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
    records: list[Instruction | Conversation],
    length: int,
    train_on_prompt: bool,
) -> tuple[list[Row], tuple[str, ...], int]:
    """A row for each record whose answer has a place; notes; tokens of all of them."""
    rows: list[Row] = []
    notes = []
    count = cut = 0
    for record in records:
        try:
            ids, said = encode(tokenizer, chat_of(record))
        except CalibrationError as error:
            raise RecoveryError(f"{record.where}: {error}") from error
        count += len(ids)
        response = sum(said) - (bool(said) and said[-1] and ids[-1] == tokenizer.eos_token_id)
        if response < 1 or not any(said[:length]):
            notes.append(
                f"{record.where}: left out, none of its {max(response, 0)} response tokens has a "
                f"place in {length} behind a prompt of {said.index(True) if response > 0 else 0}"
            )
            continue
        labels = [i if s or train_on_prompt else IGNORED for i, s in zip(ids, said, strict=True)]
        rows.append({"input_ids": ids[:length], "labels": labels[:length]})
        cut += sum(said[:length]) < response
    if cut:
        notes.append(f"{cut} of {len(records)} responses are cut at {length} tokens")
    return rows, tuple(notes), count


def chat_of(record: Instruction | Conversation) -> Chat:
    """A record as a conversation."""
    if isinstance(record, Conversation):
        return record.chat
    return instruction(record.instruction, record.input, record.output)
