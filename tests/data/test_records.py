"""What training data may look like, and what becomes of rows that are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fxprune.data.records import Document, Instruction, Records, from_text, plain, read_records
from fxprune.data.text import Text
from fxprune.errors import RecoveryError


class Rows(dict[str, list[Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


TABLES = {
    "prose": Rows(text=["one", "two"], body=["three", "four"]),
    "gaps": Rows(text=["one", "", None]),
    "alpaca": Rows(output=["o1", "o2"], input=["i1", ""], instruction=["do 1", "do 2"], id=[1, 2]),
    "short": Rows(instruction=["do 1", "do 2"], output=["o1", ""]),
    "both": Rows(instruction=["do 1"], output=["o1"], text=["all of it"]),
    "numbers": Rows(number=[1]),
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("datasets")
    module.load_dataset = lambda name, config, split: TABLES[name]
    monkeypatch.setitem(sys.modules, "datasets", module)


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    return path


def test_jsonl_of_both_kinds(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"text": "prose\n"},
        "",
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "output": "La.", "input": None},
        {"text": "all of it", "instruction": "This.", "output": "And this."},
    )
    assert read_records(path) == Records(
        "a.jsonl",
        (
            Document("prose\n", "a.jsonl line 1"),
            Instruction("Add.", "1 2", "3", "a.jsonl line 3"),
            Instruction("Sing.", "", "La.", "a.jsonl line 4"),
            Instruction("This.", "", "And this.", "a.jsonl line 5"),
        ),
    )


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one\u2028two\x85three"}', {"text": "four"})
    assert [plain(r) for r in read_records(path).records] == ["one\u2028two\x85three", "four"]


def test_windows_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n')
    assert [plain(r) for r in read_records(str(path)).records] == ["one", "two"]


def test_json_as_alpaca_is_published(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"text": "prose"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=4))
    assert read_records(path).records == (
        Instruction("Add.", "1 2", "3", "a.json entry 1"),
        Document("prose", "a.json entry 2"),
    )


def test_any_other_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.md", "one", "", '{"text": "two"}')
    whole = Document('one\n\n{"text": "two"}\n', "a.md")
    assert read_records(path) == Records("a.md", (whole,))


def test_text_of_an_instruction() -> None:
    assert plain(Instruction("Add.", "1 2", "3", "")) == "Add.\n1 2\n3"
    assert plain(Instruction("Sing.", "", "La.", "")) == "Sing.\nLa."


BAD: dict[str, tuple[Any, str]] = {
    "not json": ('{"text": "half', "it is not JSON (Unterminated string starting at at column 10)"),
    "nested": ("[" * 100_000, "it is not JSON ("),
    "list": (["text"], "it is not an object but a list"),
    "number": ({"text": 5}, 'it has no string "text", no strings "instruction" and "output"'),
    "no output": ({"instruction": "Add."}, 'it has no string "text", no strings'),
    "empty": ({"text": " \n"}, 'its "text" is empty'),
    "no answer": ({"instruction": "Add.", "output": " "}, 'its "output" is empty'),
    "no question": ({"instruction": " ", "input": "", "output": "3"}, 'its "instruction" is empty'),
    "input": ({"instruction": "Add.", "input": 3, "output": "3"}, 'its "input" is not a string'),
    "surrogate": ('{"text": "a\\ud800"}', "it has half of a surrogate pair"),
    "surrogate in an answer": (
        '{"instruction": "Add.", "output": "\\udfff"}',
        "it has half of a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case: str, tmp_path: Path) -> None:
    line, reason = BAD[case]
    path = write(tmp_path / "a.jsonl", {"text": "good"}, "", line, {"text": "fine"})
    with pytest.raises(RecoveryError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(
        f"a.jsonl: 1 of its 3 rows cannot be trained on: a.jsonl line 3: {reason}"
    )
    assert message.endswith('leave them out with bad_rows="skip" (command line: --bad-rows skip)')
    found = read_records(path, bad_rows="skip")
    assert [plain(r) for r in found.records] == ["good", "fine"]
    (skipped,) = found.skipped
    assert skipped.startswith(f"a.jsonl line 3: {reason}")


def test_many_bad_rows_are_counted_and_a_few_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"text": ""}] * 5, {"text": "good"})
    with pytest.raises(RecoveryError, match=r"5 of its 6 rows .*line 3: [^;]*; and 2 more\. Mend"):
        read_records(path)
    assert len(read_records(path, "skip").skipped) == 5


def test_bad_entries_of_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "good"}, null]')
    with pytest.raises(RecoveryError, match=r"a\.json entry 2: it is not an object but a NoneType"):
        read_records(path)
    assert read_records(path, "skip").records == (Document("good", "a.json entry 1"),)


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl has nothing in it to train on"),
        ("a.jsonl", '{"text": ""}\n{}\n', "none of its 2 rows can be trained on: a.jsonl line 1"),
        ("a.json", "[]", "a.json has nothing in it to train on"),
        ("a.json", '{"text": "one"}', "a.json holds no list of rows but a dict"),
        ("a.json", '{"text": "one"}\n{"text": "two"}', r"is not JSON.*call it \.jsonl"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.txt", " \n", 'none of its 1 rows can be trained on: a.txt: its "text" is empty'),
        ("a.pt", "", "is a pickle, which may run code and is not read"),
        ("a.BIN", "", "is a pickle, which may run code and is not read"),
        ("a.safetensors", "", "holds token ids, not text"),
        ("a.npy", "", "holds token ids, not text"),
        ("a.txt", None, r"a\.txt cannot be read"),
        ("a.txt", b"\xff\xfe", r"a\.txt cannot be read as UTF-8"),
    ],
)
def test_files_without_records(
    name: str, content: str | bytes | None, message: str, bad_rows: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecoveryError, match=message):
        read_records(path, bad_rows)


def test_bad_rows_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(RecoveryError, match="bad_rows is 'ignore': say one of refuse, skip"):
        read_records(write(tmp_path / "a.txt", "prose"), "ignore")


@pytest.mark.parametrize(
    ("spec", "records"),
    [
        ("prose", (Document("one", "{} row 1"), Document("two", "{} row 2"))),
        ("prose:::body", (Document("three", "{} row 1"), Document("four", "{} row 2"))),
        ("both", (Document("all of it", "{} row 1"),)),
        ("both:::output", (Document("o1", "{} row 1"),)),
        ("alpaca:::output", (Document("o1", "{} row 1"), Document("o2", "{} row 2"))),
        (
            "alpaca",
            (
                Instruction("do 1", "i1", "o1", "{} row 1"),
                Instruction("do 2", "", "o2", "{} row 2"),
            ),
        ),
    ],
)
def test_datasets(library: None, spec: str, records: tuple[Any, ...]) -> None:
    found = read_records(f"datasets:{spec}")
    assert found.name == spec
    assert [r.where for r in found.records] == [r.where.format(spec) for r in records]
    assert [plain(r) for r in found.records] == [plain(r) for r in records]
    assert [type(r) for r in found.records] == [type(r) for r in records]


def test_bad_rows_of_datasets(library: None) -> None:
    with pytest.raises(RecoveryError, match=r'2 of its 3 rows.*gaps row 2: its "text" is empty'):
        read_records("datasets:gaps")
    assert read_records("datasets:gaps", "skip").skipped == (
        'gaps row 2: its "text" is empty',
        'gaps row 3: it has no string "text"',
    )
    found = read_records("datasets:short", "skip")
    assert found.records == (Instruction("do 1", "", "o1", "short row 1"),)
    assert found.skipped == ('short row 2: its "output" is empty',)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("datasets:", "is not of the form"),
        ("datasets:nowhere", "cannot be loaded"),
        ("datasets:numbers", "has no column 'text': it has number"),
        ("datasets:alpaca:::title", "has no column 'title'"),
        ("datasets:numbers:::number", 'row 1: it has no string "number"'),
    ],
)
def test_bad_datasets(library: None, spec: str, message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        read_records(spec)


def test_from_text() -> None:
    assert from_text(Text("t", ("one", " ", "two"))) == Records(
        "t",
        (Document("one", "t record 1"), Document("two", "t record 3")),
        ('t record 2: its "text" is empty',),
    )
    with pytest.raises(RecoveryError, match="none of its 1 rows"):
        from_text(Text("t", ("",)))
