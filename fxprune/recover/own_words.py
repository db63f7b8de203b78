"""Data that the teacher writes: texts of its own, or its own answers to the user's rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.data.chat import Chat, begun
from fxprune.data.processes import launched
from fxprune.data.records import Conversation, Document, Record, Records
from fxprune.data.rows import chat_of
from fxprune.data.written import sampled, written
from fxprune.errors import CalibrationError, RecoveryError
from fxprune.files import write_text
from fxprune.progress import track
from fxprune.trace.modes import evaluation, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = "self"
MOST = 512  # texts
AT_ONCE = 16  # answers


def own_texts(
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    length: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Records:
    """Texts that the teacher samples, beginning with the BOS token.

    Args:
        teacher: a transformers model that generates.
        tokenizer: of both models.
        count: texts; 512 at most are written.
        length: tokens in each.
        seed: the same seed gives the same texts.
        progress: show a progress bar.

    Raises:
        RecoveryError: it cannot write.
    """
    try:
        ids = torch.cat(
            written(teacher, tokenizer, min(count, MOST), (length,), seed=seed, progress=progress)
        )
    except CalibrationError as error:
        raise RecoveryError(str(error)) from error
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    found = (Document(t, f"{OWN} {n}") for n, t in enumerate(texts, start=1) if t.strip())
    return Records("text that the teacher writes", tuple(found))


def own_answers(
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    length: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Records:
    """The rows with the last answer of each as the teacher gives it (sampled).

    A pruned model forgets less if it learns from answers in the words of the model that it was
    (self-data distillation, Thangarasa et al., arXiv 2410.09982).

    Args:
        teacher: a transformers model that generates.
        tokenizer: of both models, with a chat template, or the rows are Alpaca's.
        records: instructions and conversations.
        length: tokens of a row; what asks for an answer and leaves no room for one stays out.
        seed: the same seed gives the same answers.
        progress: show a progress bar.

    Raises:
        RecoveryError: a record is a text; the teacher cannot write; or nothing is left.
    """
    chats = [(each.where, _to_answer(each)) for each in records.records]
    try:
        asked = [(*each, begun(tokenizer, each[1])) for each in chats]
    except CalibrationError as error:
        raise RecoveryError(f"{records.name}: {error}") from error
    asked = [each for each in asked if len(each[2]) < length]
    order = sorted(range(len(asked)), key=lambda place: len(asked[place][2]))
    answers: dict[int, str] = {}
    parts = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    with evaluation(teacher), seeded(seed), torch.no_grad():
        for places in track(parts, "writing answers", progress):
            found = _answered(teacher, tokenizer, [asked[p][2] for p in places], length)
            answers.update(zip(places, found, strict=True))
    made = [
        Conversation(Chat((*chat.turns[:-1], ("assistant", answer)), chat.plain), where)
        for place, (where, chat, _) in enumerate(asked)
        if (answer := answers[place].strip())
    ]
    if not made:
        raise RecoveryError(f"{records.name}: no row leaves room for an answer in {length} tokens")
    return Records(f"{records.name}, answered by the teacher", tuple(made), records.skipped)


def _to_answer(record: Record) -> Chat:
    """The conversation up to its last answer.

    Raises:
        RecoveryError: the record is a text.
    """
    if isinstance(record, Document):
        raise RecoveryError(
            f"{record.where} is a text, and only conversations and instructions have answers "
            "that a teacher can rewrite"
        )
    chat = chat_of(record)
    last = max(n for n, (role, _) in enumerate(chat.turns) if role == "assistant")
    return Chat(chat.turns[: last + 1], chat.plain)


def _answered(
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    starts: Sequence[Sequence[int]],
    length: int,
) -> list[str]:
    """What the teacher says next; shorter beginnings are filled up on the left."""
    longest = max(map(len, starts))
    ids = torch.zeros(len(starts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, start in enumerate(starts):
        ids[place, longest - len(start) :] = torch.tensor(start)
        mask[place, longest - len(start) :] = 1
    device = next(teacher.parameters()).device
    end = tokenizer.eos_token_id
    try:
        said = sampled(
            teacher,
            ids.to(device),
            mask.to(device),
            temperature=1.0,
            top_p=0.95,
            max_new_tokens=length - longest,
            pad_token_id=0 if end is None else end,
        )
    except Exception as error:  # whatever the code of a model raises
        raise RecoveryError(
            f"{type(teacher).__name__} cannot write answers ({error or type(error).__name__})"
        ) from error
    return list(tokenizer.batch_decode(said[:, longest:], skip_special_tokens=True))


def kept(file: Path | None, make: Any) -> Records:
    """What was written once, from a file beside the run, so that a killed run goes on with it."""
    from fxprune.data.records import read_records

    if file is not None and file.is_file():
        return read_records(file)
    if file is not None and launched() > 1:
        raise RecoveryError(
            f"{file} is not there yet: let one process write it, by the same command without a "
            "launcher; it can be ended once training begins"
        )
    found: Records = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(row) + "\n" for row in _rows(found)))
    return found


def _rows(records: Records) -> Iterator[dict[str, Any]]:
    for record in records.records:
        if isinstance(record, Conversation):
            turns = [{"role": role, "content": text} for role, text in record.chat.turns]
            yield {"messages": turns} | (
                {} if record.chat.plain is None else {"plain": record.chat.plain}
            )
        else:
            assert isinstance(record, Document)
            yield {"text": record.text}
