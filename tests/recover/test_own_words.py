"""Data that the teacher writes: asked as the rows ask, kept beside the run, learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.data.chat import Chat
from fxprune.data.records import Conversation, Document, Instruction, Records, read_records
from fxprune.errors import RecoveryError
from fxprune.recover import own_words
from fxprune.recover.methods import Distillation, FullTraining
from fxprune.recover.recover import recover
from fxprune.recover.settings import Training
from tests.data.test_chat import TURNS, templated
from tests.hf import tiny

CHATS = Records(
    "r",
    (
        Conversation(Chat((*TURNS, ("user", "And?"))), "r line 1"),
        Instruction("Sing.", "", "La.", "r line 2"),
        Conversation(Chat((("user", "x" * 200), ("assistant", "y"))), "r line 3"),
    ),
)


class Parrot(nn.Module):
    """Says what it is told, whatever is asked, and keeps what it was asked."""

    def __init__(self, tokenizer: Any, answer: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.answer = tokenizer, answer
        self.asked: list[str] = []

    def generate(self, ids: torch.Tensor, *, attention_mask: torch.Tensor, **_: Any) -> Any:
        for row, mask in zip(ids, attention_mask.bool(), strict=True):
            assert mask[-1]  # filled up on the left
            assert not mask[: int((~mask).sum())].any()
            self.asked.append(self.tokenizer.decode(row[mask]))
        said = torch.tensor(self.tokenizer(self.answer)["input_ids"] + [256])
        return torch.cat([ids, said.expand(len(ids), -1)], 1)


def test_the_last_answer_is_the_teachers() -> None:
    tokenizer = templated()
    parrot = Parrot(tokenizer, "Polly!")
    found = own_words.own_answers(parrot, tokenizer, CHATS, 120)
    # The shorter first; the third leaves no room for an answer.
    assert parrot.asked == [
        "<|user|>Sing.<end>\n<|assistant|>",
        "<|system|>Be kind.<end>\n<|user|>Hi?<end>\n<|assistant|>Ho.<end>\n<|user|>So?<end>\n"
        "<|assistant|>",
    ]
    first, second = (record.chat.turns for record in found.records)  # type: ignore[union-attr]
    assert first == (*TURNS[:-1], ("assistant", "Polly!"))
    assert second == (("user", "Sing."), ("assistant", "Polly!"))


def test_without_a_template_alpaca_asks_in_its_own_words() -> None:
    tokenizer = tiny.tokenizer()
    parrot = Parrot(tokenizer, "Polly!")
    records = Records("r", CHATS.records[1:2])
    found = own_words.own_answers(parrot, tokenizer, records, 300)
    assert parrot.asked[0].endswith("### Instruction:\nSing.\n\n### Response:\n")
    (record,) = found.records
    assert isinstance(record, Conversation)
    assert record.chat.plain == parrot.asked[0]
    with pytest.raises(RecoveryError, match="r: the tokenizer has no chat template"):
        own_words.own_answers(parrot, tokenizer, CHATS, 300)


def test_what_has_no_answer() -> None:
    tokenizer = templated()
    parrot = Parrot(tokenizer, " ")
    with pytest.raises(RecoveryError, match="only conversations and instructions have answers"):
        own_words.own_answers(parrot, tokenizer, Records("r", (Document("t", "r"),)), 99)
    with pytest.raises(RecoveryError, match="leaves room for an answer"):
        own_words.own_answers(parrot, tokenizer, CHATS, 120)


def test_it_is_learnt_and_kept_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = templated()
    tokenizer.bos_token = "a"
    teacher, student = tiny.llama(), tiny.llama()
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}.", "output": "no"} for n in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = Training(steps=2, batch_size=2, length=48)
    options: dict[str, Any] = {"training": training, "tokenizer": tokenizer, "validation": 0.25}
    method = FullTraining(teacher=teacher)
    done = recover(student, str(file), method, rewrite=True, out=tmp_path / "run", **options)
    assert len(done.history.steps) == 2
    kept = read_records(tmp_path / "run-written.jsonl")
    assert len(kept.records) == 8
    assert all(isinstance(r, Conversation) and r.chat.turns[1][1] != "no" for r in kept.records)
    # It may write without teaching anything else, but not do nothing at all.
    silent = FullTraining(teacher=Distillation(teacher, weight=0))
    plain = recover(tiny.llama(), str(file), silent, rewrite=True, **options)
    told = recover(tiny.llama(), str(tmp_path / "run-written.jsonl"), FullTraining(), **options)
    assert [s.loss for s in plain.history.steps] == [s.loss for s in told.history.steps]
    with pytest.raises(RecoveryError, match="writes no data does nothing"):
        recover(student, str(file), silent, **options)
    # Of a run that goes on nothing is written anew.
    monkeypatch.setattr(own_words, "own_answers", None)
    recover(tiny.llama(), str(file), method, rewrite=True, out=tmp_path / "run", **options)
    found = recover(tiny.llama(), "self", method, **options)
    assert len(found.history.steps) == 2
    with pytest.raises(RecoveryError, match="a teacher writes this data"):
        recover(student, "self", FullTraining(), **options)
    with pytest.raises(RecoveryError, match="give steps="):
        recover(student, "self", method, **{**options, "training": Training(length=48)})


def test_more_texts_than_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.data.written.TOKENS", 24)
    tokenizer = templated()
    tokenizer.bos_token = "a"
    found = own_words.own_texts(tiny.llama(), tokenizer, 5, 12)
    assert [record.where for record in found.records] == [f"self {n}" for n in range(1, 6)]


def test_many_processes_do_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecoveryError, match="let one process write it"):
        own_words.kept(tmp_path / "x.jsonl", lambda: CHATS)
