"""Conversations in the shapes people have them, through a tokenizer's template or without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.data import text
from fxprune.data.chat import Chat, encode, instruction, read_chat, tokens
from fxprune.data.loss import IGNORED
from fxprune.data.records import Conversation, Instruction, Records, from_text, read_records
from fxprune.data.rows import make_rows
from fxprune.data.sources import source
from fxprune.errors import CalibrationError, RecoveryError
from tests.hf import tiny

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As some have it: no system turn, and what was thought is left out once another turn follows.
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}[{{ m['role'] }}]{% if loop.last %}{{ m['content'] }}{% else %}"
    "{{ m['content'].split('</think>')[-1] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = (("system", "Be kind."), ("user", "Hi?"), ("assistant", "Ho."), ("user", "So?"))
TURNS = (*TURNS, ("assistant", "Yes."))
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


def templated(template: str = CHATML) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer: Any, chat: Chat) -> tuple[str, str]:
    """All of it, and what the assistant says in it."""
    ids, mask = encode(tokenizer, chat)
    own = [i for i, mine in zip(ids, mask, strict=True) if mine]
    return tokenizer.decode(ids), tokenizer.decode(own)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"conversations": [{"from": r, "value": c} for r, c in TURNS]},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}.get(r, r), "value": c}
                for r, c in TURNS
            ]
        },
        {"messages": [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in TURNS]},
    ],
)
def test_the_shapes_people_have(row: dict[str, Any]) -> None:
    chat = read_chat(row)
    assert isinstance(chat, Chat)
    assert chat.turns == TURNS
    assert chat == "Be kind.\nHi?\nHo.\nSo?\nYes."


def test_the_template_writes_it_and_answers_are_known() -> None:
    whole, own = said(templated(), Chat(TURNS))
    assert whole == (
        "<|system|>Be kind.<end>\n<|user|>Hi?<end>\n<|assistant|>Ho.<end>\n<|user|>So?<end>\n"
        "<|assistant|>Yes.<end>\n"
    )
    assert own == "Ho.<end>\nYes.<end>\n"


def test_a_template_that_cannot_be_followed() -> None:
    with pytest.raises(CalibrationError, match="refuses a conversation: no system"):
        encode(templated(STRICT), Chat(TURNS))
    assert said(templated(STRICT), Chat(TURNS[1:]))[1] == "Ho.Yes."
    thought = Chat((TURNS[1], ("assistant", "hm</think>Ho."), *TURNS[3:]))
    with pytest.raises(CalibrationError, match="writes a turn otherwise once others follow"):
        encode(templated(STRICT), thought)
    with pytest.raises(CalibrationError, match="has no chat template"):
        encode(tiny.tokenizer(), Chat(TURNS))


def test_alpaca_has_its_own_form_where_there_is_no_template() -> None:
    chat = instruction("Add.", "1 2", "3")
    whole, own = said(tiny.tokenizer(), chat)
    assert whole.endswith("### Input:\n1 2\n\n### Response:\n3<end>")
    assert own == "3<end>"
    assert said(templated(), chat)[0] == "<|user|>Add.\n\n1 2<end>\n<|assistant|>3<end>\n"
    assert said(templated(), instruction("Sing.", " ", "La."))[0].startswith("<|user|>Sing.<end>")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["hi"], 'number 1 of its "messages" is not an object'),
        ([{"role": "judge", "content": "x"}], "has the role 'judge'"),
        ([{"role": "user", "content": None}], "has no text as its content"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "has no text as its"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text as its"),
        ([{"role": "user", "content": "hi"}], "have no answer of an assistant"),
        ([], "have no answer of an assistant"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, messages: list[Any], reason: str) -> None:
    found = read_chat({"messages": messages})
    assert reason in found
    assert not isinstance(found, Chat)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    with pytest.raises(CalibrationError, match=r"a\.jsonl line 1: "):
        text.read(file)
    with pytest.raises(RecoveryError, match=r"a\.jsonl line 1: "):
        read_records(file)


def test_calibration_reads_them_through_the_template(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [
        {"messages": MESSAGES},
        {"text": "plain"},
        {"text": "more"},
        {"instruction": "Sing.", "input": None, "output": "La."},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = text.read(file)
    tokenizer = templated()
    ids = text.joined(tokenizer, found)
    expected = "plain\n\nmore<|user|>Sing.<end>\n<|assistant|>La.<end>\n"
    assert tokenizer.decode(ids).endswith(f"Yes.<end>\n{expected}")
    crop = text.crops(tokenizer, found, 1, 60)[0]
    whole = tokens(tokenizer, found.records[0])
    assert any(torch.equal(crop, whole[i : i + 60]) for i in range(len(whole) - 59))
    # The halves that calibrate and measure are conversations still.
    first, second = text.split(found)
    assert isinstance(first.records[0], Chat)
    assert isinstance(second.records[-1], Chat)


def test_rows_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[dict[str, Any]]):
        column_names = ("id", "messages")

        def __getitem__(self, name: Any) -> Any:
            return [row[name] for row in self]

    class Library:
        @staticmethod
        def load_dataset(*_: Any, **__: Any) -> Rows:
            return Rows([{"id": 1, "messages": MESSAGES}])

    monkeypatch.setattr("importlib.import_module", lambda name: Library)
    found = source("datasets:chats")
    assert isinstance(found, text.Text)
    assert found.records == (Chat(TURNS),)
    assert isinstance(found.records[0], Chat)
    assert read_records("datasets:chats").records == (Conversation(Chat(TURNS), "chats row 1"),)


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_recovery_learns_the_answers(tmp_path: Path, train_on_prompt: bool) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": MESSAGES}))
    (record,) = read_records(file).records
    assert record == Conversation(Chat(TURNS), "a.jsonl line 1")
    tokenizer = templated()
    (row,), notes = make_rows(
        tokenizer, Records("r", (record,)), 500, train_on_prompt=train_on_prompt
    )
    learnt = [label for label in row["labels"] if label != IGNORED]
    whole, own = said(tokenizer, Chat(TURNS))
    assert tokenizer.decode(row["input_ids"]) == whole
    assert tokenizer.decode(learnt) == (whole if train_on_prompt else own)
    assert not notes
    # Cut behind the first answer: the second has no place, and it is said.
    place = len(tokenizer(whole[: whole.index("<|user|>So")])["input_ids"])
    (row,), notes = make_rows(tokenizer, Records("r", (record,)), place)
    assert notes == (f"1 of 1 responses are cut at {place} tokens",)
    with pytest.raises(RecoveryError, match="no row of 12 tokens"):
        make_rows(tokenizer, Records("r", (record,)), 12)
    with pytest.raises(RecoveryError, match=r"a\.jsonl line 1: the tokenizer has no chat template"):
        make_rows(tiny.tokenizer(), Records("r", (record,)), 500)


def test_instructions_take_the_template_too() -> None:
    record = Instruction("Sing.", "", "La.", "r")
    (row,), _ = make_rows(templated(), Records("r", (record,)), 500)
    assert templated().decode(row["input_ids"]) == "<|user|>Sing.<end>\n<|assistant|>La.<end>\n"


def test_a_text_of_conversations_as_records() -> None:
    (record,) = from_text(text.Text("t", (Chat(TURNS),))).records
    assert record == Conversation(Chat(TURNS), "t record 1")
