"""From records to rows of tokens, one token per byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.data.chat import PROMPT, PROMPT_WITH_INPUT
from fxprune.data.records import Document, Instruction, Record, Records
from fxprune.data.rows import Row, collate, make_rows
from fxprune.errors import RecoveryError
from tests.hf import tiny

TOKENIZER = tiny.tokenizer()
END = TOKENIZER.eos_token_id
SING = Instruction("Sing.", "", "La la.", "a.json entry 1")
ADD = Instruction("Add {these}.", "1 2", "3", "a.json entry 2")
SING_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nSing.\n\n### Response:\n"
)
ADD_PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {these}.\n\n### Input:\n1 2\n\n### Response:\n"
)


def records(*given_records: str | Record) -> Records:
    return Records("r", tuple(Document(r, "r") if isinstance(r, str) else r for r in given_records))


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def packed(*row: int) -> Row:
    return {"input_ids": list(row), "labels": list(row)}


def test_documents_are_packed_with_an_end_behind_each() -> None:
    a, b, c, d, e = ids("abcde")
    rows, notes = make_rows(TOKENIZER, records("abc", "d", "eab"), 4)
    assert rows == [packed(a, b, c, END), packed(d, END, e, a)]  # b and an end are lost
    assert notes == ()


def test_a_tokenizer_without_an_end() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    a, b, c, d = ids("abcd")
    instruction = Instruction("i", "", "b", "r")
    rows, _ = make_rows(tokenizer, records("ab", "c", "dab"), 2)
    assert rows == [packed(a, b), packed(c, d), packed(a, b)]
    rows, _ = make_rows(tokenizer, records(instruction), 500)
    assert rows[0]["labels"][-2:] == [-100, b]


@given(st.lists(st.text("abc", min_size=1, max_size=30), max_size=8), st.integers(2, 12))
def test_packing_loses_only_the_remainder(texts: list[str], length: int) -> None:
    stream = [token for text in texts for token in (*ids(text), END)]
    if len(stream) < length:
        with pytest.raises(
            RecoveryError, match=f"with {len(stream)} tokens in all; take a smaller"
        ):
            make_rows(TOKENIZER, records(*texts), length)
        return
    rows, notes = make_rows(TOKENIZER, records(*texts), length)
    assert notes == ()
    assert all(len(row["input_ids"]) == length for row in rows)
    assert [t for row in rows for t in row["input_ids"]] == stream[: len(rows) * length]
    assert len(stream) - len(rows) * length < length
    for row in rows:
        assert row["labels"] == row["input_ids"]
        assert row["labels"] is not row["input_ids"]


@pytest.mark.parametrize(("record", "prompt"), [(SING, SING_PROMPT), (ADD, ADD_PROMPT)])
def test_instructions_hide_their_prompt(record: Instruction, prompt: str) -> None:
    answer = [*ids(record.output), END]
    row = {"input_ids": ids(prompt) + answer, "labels": [-100] * len(prompt) + answer}
    assert make_rows(TOKENIZER, records(record), 400) == ([row], ())
    shown = {"input_ids": row["input_ids"], "labels": row["input_ids"]}
    assert make_rows(TOKENIZER, records(record), 400, train_on_prompt=True) == ([shown], ())


def test_an_input_of_white_space_is_none() -> None:
    blank = Instruction("Sing.", " \n", "La la.", "r")
    assert make_rows(TOKENIZER, records(blank), 400) == make_rows(TOKENIZER, records(SING), 400)
    assert PROMPT.format(instruction="Sing.") == SING_PROMPT
    assert PROMPT_WITH_INPUT.format(instruction="Add {these}.", input="1 2") == ADD_PROMPT


def test_packed_rows_come_first() -> None:
    rows, _ = make_rows(TOKENIZER, records(SING, "x" * 400), 300)
    assert [len(row["input_ids"]) for row in rows] == [300, len(SING_PROMPT) + 7]


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_long_instructions_are_cut_or_left_out(train_on_prompt: bool) -> None:
    size = len(SING_PROMPT)
    both = records(SING, Instruction("Si", "", "La la.", "a.json entry 7"))  # 3 shorter
    first = ids(SING_PROMPT)[:1] if train_on_prompt else [-100]

    rows, notes = make_rows(TOKENIZER, both, size + 7, train_on_prompt=train_on_prompt)
    assert notes == ()
    rows, notes = make_rows(TOKENIZER, both, size + 6, train_on_prompt=train_on_prompt)
    assert notes == ()  # only the end is cut
    assert rows[0]["labels"][-6:] == ids("La la.")

    rows, notes = make_rows(TOKENIZER, both, size + 2, train_on_prompt=train_on_prompt)
    assert [len(row["input_ids"]) for row in rows] == [size + 2, size + 2]
    assert [row["labels"][-2:] for row in rows] == [ids("La"), ids("la")]
    assert [row["labels"][:1] for row in rows] == [first, first]
    assert notes == (f"2 of 2 responses are cut at {size + 2} tokens",)

    rows, notes = make_rows(TOKENIZER, both, size, train_on_prompt=train_on_prompt)
    assert [row["labels"][-3:] for row in rows] == [ids("La ")]
    assert notes == (
        f"a.json entry 1: left out, none of its 6 response tokens has a place in {size} behind a "
        f"prompt of {size}",
        f"1 of 2 responses are cut at {size} tokens",
    )


def test_a_response_without_tokens_is_left_out() -> None:
    rows, notes = make_rows(TOKENIZER, records(Instruction("i", "", "", "here"), SING), 400)
    assert len(rows) == 1
    assert notes[0].startswith("here: left out, none of its 0 response tokens")


def test_no_rows() -> None:
    with pytest.raises(RecoveryError, match=r"no row of 9 tokens .*1 document.*with 4 tokens"):
        make_rows(TOKENIZER, records("abc"), 9)
    count = len(SING_PROMPT) + 7
    with pytest.raises(RecoveryError, match=rf"1 instruction.*with {count} tokens in all"):
        make_rows(TOKENIZER, records(SING), 20)
    with pytest.raises(RecoveryError, match="with 0 tokens"):
        make_rows(TOKENIZER, records(), 20)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_rows_are_of_two_tokens_at_least(length: int) -> None:
    with pytest.raises(RecoveryError, match="take at least 2"):
        make_rows(TOKENIZER, records("abc"), length)


def test_collate() -> None:
    rows = [
        {"input_ids": [5, 6], "labels": [-100, 6]},
        {"input_ids": [7, 8, 9], "labels": [7, 8, 9]},
    ]
    batch = collate(rows, pad=3)
    expected = {
        "input_ids": [[5, 6, 3], [7, 8, 9]],
        "labels": [[-100, 6, -100], [7, 8, 9]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert collate(rows)["input_ids"][0].tolist() == [5, 6, 0]


def test_padding_changes_no_loss() -> None:
    rows, _ = make_rows(TOKENIZER, records(SING, ADD), 400)
    model = tiny.llama(max_position_embeddings=512)
    with torch.no_grad():
        apart = [model(**collate([row])).loss for row in rows]
        together = model(**collate(rows)).loss
    weights = torch.tensor([7.0, 2.0])  # responses with their ends
    torch.testing.assert_close(together, (torch.stack(apart) * weights).sum() / weights.sum())


def test_the_rest_of_documents_as_a_shorter_row() -> None:
    a, b, c, d, e = ids("abcde")
    rows, _ = make_rows(TOKENIZER, records("abc", "d", "eab"), 4, keep_rest=True)
    assert rows == [packed(a, b, c, END), packed(d, END, e, a), packed(b, END)]
    rows, _ = make_rows(TOKENIZER, records("abcd"), 4, keep_rest=True)
    assert rows == [packed(a, b, c, d)]  # an end alone predicts nothing
