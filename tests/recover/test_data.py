"""From what a user gives to what is trained and validated on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fxprune.data.records import Document, Records
from fxprune.data.text import Text
from fxprune.errors import RecoveryError
from fxprune.recover.data import Reading, prepare
from tests.hf import tiny

TOKENIZER = tiny.tokenizer()
LINES = tuple(
    f"Line {n} of the text is about {n * n} things, no more and no less." for n in range(40)
)


def test_documents_are_split_and_packed() -> None:
    rows = prepare(Text("t", LINES), TOKENIZER, Reading(length=20, validation=0.25))
    assert {len(row["input_ids"]) for row in rows.training} == {20}
    told = [
        TOKENIZER.decode([token for row in part for token in row["input_ids"]])
        for part in (rows.training, rows.validation)
    ]
    # Each document is on one side, all but a cut-off rest of the training side.
    validated = [line for line in LINES if line in told[1]]
    assert len(validated) == 10
    assert not any(line in told[0] for line in validated)
    assert sum(line in told[0] for line in LINES) in (29, 30)
    # The rest of the validation side is kept, though it makes no full row.
    assert told[1].count("<end>") == 10


def test_the_split_is_by_seed() -> None:
    def held(seed: int) -> str:
        rows = prepare(Text("t", LINES), TOKENIZER, Reading(validation=0.25, seed=seed, length=20))
        return str(rows.validation)

    assert held(0) == held(0) != held(1)


def test_other_data_validate(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text(json.dumps({"text": "Something else altogether."}) + "\n")
    rows = prepare(Text("t", LINES), TOKENIZER, Reading(length=20, validation=file))
    alone = prepare(Text("t", LINES), TOKENIZER, Reading(length=20, validation=0.0))
    assert rows.training == alone.training
    assert alone.validation == []
    assert TOKENIZER.decode(rows.validation[0]["input_ids"]) == "Something else altog"


def test_token_ids_are_rows() -> None:
    ids = torch.arange(20).view(10, 2)
    rows = prepare(ids, None, Reading(validation=0.2))
    assert len(rows.validation) == 2
    both = sorted(row["input_ids"] for row in (*rows.training, *rows.validation))
    assert both == ids.tolist()
    assert all(row["labels"] == row["input_ids"] for row in rows.training)


def test_examples_of_ones_own_are_as_they_are() -> None:
    examples = [(torch.zeros(3), 1)] * 4
    assert prepare(examples, None, Reading(validation=0.0)).training == examples


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES) + "{]\n")
    leak = Text("measured", (LINES[3] + " " + LINES[4],))
    reading = Reading(length=20, bad_rows="skip", evaluation=[leak], drop_overlap=True)
    notes = prepare(file, TOKENIZER, reading).notes
    assert any("line 41" in note for note in notes)
    assert any("line 4" in note and "measured" in note for note in notes)
    with pytest.raises(RecoveryError, match="2 of its 40"):
        prepare(file, TOKENIZER, Reading(length=20, bad_rows="skip", evaluation=[leak]))


@pytest.mark.parametrize(
    ("data", "reading", "said"),
    [
        (torch.zeros(3, 4), Reading(), "token ids are integers"),
        (torch.zeros(12, dtype=torch.long), Reading(), "token ids are integers"),
        (torch.zeros(3, 4, dtype=torch.long), Reading(validation=0.7), "validation is 0.7"),
        ([], Reading(validation=0.0), "nothing to train on"),
        ([{}], Reading(evaluation=[Text("t", LINES)]), "these are not text"),
        (Text("t", LINES), Reading(), "give tokenizer="),
        (Records("r", (Document("a", "r"),)), Reading(), "give tokenizer="),
    ],
)
def test_refusals(data: object, reading: Reading, said: str) -> None:
    with pytest.raises(RecoveryError, match=said):
        prepare(data, None, reading)  # type: ignore[arg-type]
