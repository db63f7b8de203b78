"""Text sources, the disjoint split, and crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fxprune.data.draw import mixed_crops
from fxprune.data.text import (
    Text,
    builtin,
    crops,
    domains,
    joined,
    read,
    read_all,
    split,
    tokens,
)
from fxprune.errors import CalibrationError
from tests.hf import tiny

TOKENIZER = tiny.tokenizer()


def _paragraphs(text: Text) -> set[str]:
    found = (" ".join(p.split()) for record in text.records for p in record.split("\n\n"))
    return {p for p in found if len(p) >= 60}


def test_builtin_parts_share_no_paragraph() -> None:
    calibration, evaluation = builtin()
    assert not _paragraphs(calibration) & _paragraphs(evaluation)
    assert not set(calibration.records) & set(evaluation.records)


def test_builtin_is_all_topics_in_two_like_parts_every_time() -> None:
    from pydoc_data.topics import topics

    calibration, evaluation = builtin()
    assert sorted((*calibration.records, *evaluation.records)) == sorted(topics.values())
    sizes = [sum(map(len, part.records)) for part in (calibration, evaluation)]
    assert min(sizes) > 0.4 * sum(sizes)
    assert builtin() == (calibration, evaluation)


def test_read_text_is_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo, häßlich.", encoding="utf-8")
    assert read(tmp_path / "a.txt") == Text("a.txt", ("One.\n\nTwo, häßlich.",))


def test_read_jsonl_is_a_record_per_line(tmp_path: Path) -> None:
    rows = [{"text": "first"}, {"title": "t", "text": "second"}, {"text": "  "}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(tmp_path / "a.jsonl").records == ("first", "second")


def test_jsonl_may_hold_any_line_separator_in_its_strings(tmp_path: Path) -> None:
    record = "one\u2028two\x85three"
    lines = [json.dumps({"text": record}, ensure_ascii=False), json.dumps({"text": "last"})]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    assert read(tmp_path / "a.jsonl").records == (record, "last")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n ", "has no text in it"),
        ("a.jsonl", b"", "has no text in it"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nnot json', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}', 'line 1 has no string "text"'),
        ("a.jsonl", b'{"text": 3}', 'line 1 has no string "text"'),
    ],
)
def test_bad_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message):
        read(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no\.txt cannot be read"):
        read(tmp_path / "no.txt")


def test_split_keeps_order_and_halves_by_length() -> None:
    text = Text("t", ("a" * 10, "b" * 50, "c" * 20, "d" * 20, "a" * 10))
    first, second = split(text)
    assert first.records == ("a" * 10, "b" * 50)
    assert second.records == ("c" * 20, "d" * 20)


def test_split_never_leaves_a_side_empty() -> None:
    for records in (("a", "b" * 99), ("a" * 99, "b")):
        assert all(part.records for part in split(Text("t", records)))


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_split_cuts_a_single_record_where_something_ends(separator: str) -> None:
    record = separator.join(["word" * 5] * 40)
    (first,), (second,) = (part.records for part in split(Text("t", (record,))))
    assert first + second == record
    assert second.startswith(separator)
    assert abs(len(first) - len(second)) < 60


def test_tokens_are_plain() -> None:
    assert TOKENIZER.decode(tokens(TOKENIZER, "abc")) == "abc"
    assert TOKENIZER.decode(joined(TOKENIZER, Text("t", ("ab", "c")))) == "ab\n\nc"


def test_crops_come_from_long_records_only() -> None:
    text = Text("t", ("x" * 5, "a" * 20, "b" * 30, "y" * 19))
    drawn = crops(TOKENIZER, text, count=50, length=20)
    assert drawn.shape == (50, 20)
    assert drawn.dtype == torch.long
    assert {TOKENIZER.decode(row) for row in drawn} == {"a" * 20, "b" * 20}


def test_crops_are_contiguous_and_reach_both_ends() -> None:
    record = "abcdefghij"
    rows = {TOKENIZER.decode(r) for r in crops(TOKENIZER, Text("t", (record,)), 100, 7)}
    assert rows == {record[i : i + 7] for i in range(4)}


def test_crops_follow_the_seed() -> None:
    text = builtin()[0]
    assert torch.equal(crops(TOKENIZER, text, seed=3), crops(TOKENIZER, text, seed=3))
    assert not torch.equal(crops(TOKENIZER, text, seed=3), crops(TOKENIZER, text, seed=4))


def test_too_short_says_how_much_there_is_and_is_needed() -> None:
    with pytest.raises(CalibrationError, match=r"longest record has 7 tokens, 128 are needed"):
        crops(TOKENIZER, Text("t", ("a" * 3, "b" * 7)))


def test_empty_text() -> None:
    with pytest.raises(CalibrationError, match=r"longest record has 0 tokens"):
        crops(TOKENIZER, Text("t", ()))


def test_mixed_crops_share_the_tokens() -> None:
    text = Text("t", tuple(chr(97 + i) * 64 for i in range(26)))
    batches = mixed_crops(TOKENIZER, text, 16, (8, 32), most=40)
    assert [tuple(b.shape) for b in batches] == [(5, 8), (3, 8), (1, 32), (1, 32)]
    again = mixed_crops(TOKENIZER, text, 16, (8, 32), most=1000)
    assert torch.equal(torch.cat(batches[:2]), again[0])
    assert torch.equal(again[0], crops(TOKENIZER, text, 8, 8))


def test_fewer_mixed_crops_are_the_first_ones() -> None:
    text = Text("t", tuple(chr(97 + i) * 64 for i in range(26)))
    few, many = (mixed_crops(TOKENIZER, text, n, (8, 32), most=10**6) for n in (8, 32))
    for some, more in zip(few, many, strict=True):
        assert len(some) < len(more)
        assert torch.equal(some, more[: len(some)])


def test_lengths_that_no_record_has_are_left_out() -> None:
    text = Text("t", ("a" * 20,))
    (batch,) = mixed_crops(TOKENIZER, text, 6, (8, 32))
    assert torch.equal(batch, crops(TOKENIZER, text, 6, 8))
    with pytest.raises(CalibrationError, match="longest record has 20 tokens, 21 are needed"):
        mixed_crops(TOKENIZER, text, 6, (21, 32))


@pytest.mark.parametrize(("count", "length"), [(0, 8), (3, 1), (-1, 8)])
def test_nonsense_sizes(count: int, length: int) -> None:
    with pytest.raises(CalibrationError, match="take at least"):
        crops(TOKENIZER, Text("t", ("a" * 99,)), count, length)


def test_several_texts_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "other" / "a.txt", tmp_path / "b.txt"]
    files[1].parent.mkdir()
    for file in files:
        file.write_text("some words")
    assert [each.name for each in read_all(files)] == ["a.txt", str(files[1]), "b.txt"]
    with pytest.raises(CalibrationError, match=r"b\.txt is given twice to measure on"):
        read_all([*files, tmp_path / "other" / ".." / "b.txt"])


def test_domains_of_lines(tmp_path: Path) -> None:
    rows = [("b", "web"), ("a", "books"), ("c", "web"), (" ", "none")]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": t, "meta": {"set": s}}) + "\n" for t, s in rows))
    assert domains(file, "meta.set") == [
        Text("a.jsonl, books", ("a",)),
        Text("a.jsonl, web", ("b", "c")),
    ]
    assert [each.name for each in read_all([file], domain="meta.set")] == [
        "a.jsonl, books",
        "a.jsonl, web",
    ]
    for field in ("set", "meta", "meta.sets", "text.set"):
        with pytest.raises(CalibrationError, match=f"record 1 has no string '{field}'"):
            domains(file, field)
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(CalibrationError, match=r"only lines of a \.jsonl have domains"):
        domains(tmp_path / "a.txt", "set")
