"""Nothing serves both to calibrate and to measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.cli.compare.data import read
from fxprune.data.text import OWN, Text, builtin
from fxprune.errors import CalibrationError
from fxprune.trace.digests import digest, model_digest
from tests.hf import tiny


def _jsonl(path: Path, *records: str) -> Path:
    path.write_text("".join(json.dumps({"text": record}) + "\n" for record in records))
    return path


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    return _jsonl(tmp_path / "a.jsonl", "one", "two\nlines"), _jsonl(tmp_path / "b.jsonl", "three")


def test_two_texts(texts: tuple[Path, Path]) -> None:
    data = read(*texts[:1], [texts[1]])
    assert data.name == "a.jsonl"
    assert data.calibration == Text("a.jsonl", ("one", "two\nlines"))
    assert data.evaluations == {"b.jsonl": Text("b.jsonl", ("three",))}


def test_without_evaluation_half_measures(texts: tuple[Path, Path]) -> None:
    data = read(texts[0])
    assert isinstance(data.calibration, Text)
    assert data.calibration.records == ("one",)
    assert [text.records for text in data.evaluations.values()] == [("two\nlines",)]


def test_without_any_text_prose_inside_python(texts: tuple[Path, Path]) -> None:
    first, second = builtin()
    data = read(None)
    assert (data.calibration, list(data.evaluations.values())) == (first, [second])
    data = read(None, [texts[0]])
    assert (data.calibration, list(data.evaluations)) == (first, ["a.jsonl"])


def test_what_the_model_writes(texts: tuple[Path, Path]) -> None:
    assert read("self", [texts[0]]).calibration is OWN
    with pytest.raises(CalibrationError, match="give a text to measure on"):
        read("self")


def test_same_file(texts: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "sub" / ".." / "a.jsonl"
    (tmp_path / "sub").mkdir()
    with pytest.raises(CalibrationError, match="cannot both calibrate and measure"):
        read(texts[0], [texts[1], other])
    with pytest.raises(CalibrationError, match="given twice"):
        read(texts[0], [texts[1], texts[1]])


def test_same_record(texts: tuple[Path, Path], tmp_path: Path) -> None:
    other = _jsonl(tmp_path / "c.jsonl", "new", "two  lines")
    with pytest.raises(CalibrationError, match=r"1 of its 2 records .* begins 'two lines'"):
        read(texts[0], [texts[1], other])


def test_same_text_in_another_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the same")
    with pytest.raises(CalibrationError, match="1 of its 1 records"):
        read(tmp_path / "a.txt", [tmp_path / "b.txt"])


def test_tokens_calibrate_only(texts: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "ids.npy"
    np.save(file, np.ones((2, 5), dtype=np.int64))
    data = read(file, [texts[0]])
    assert isinstance(data.calibration, torch.Tensor)
    assert data.name == "ids.npy"
    with pytest.raises(CalibrationError, match="give text to measure on"):
        read(texts[0], [file])
    with pytest.raises(CalibrationError, match="give a text to measure on"):
        read(file)


def test_files_of_one_name_are_told_apart(texts: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    other = _jsonl(tmp_path / "sub" / "b.jsonl", "four")
    assert list(read(texts[0], [texts[1], other]).evaluations) == ["b.jsonl", str(other)]


def test_digests() -> None:
    model = tiny.llama()
    before = model_digest(model)
    assert before == model_digest(tiny.llama())
    assert before == model_digest(model.to(torch.float32))
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert before != model_digest(model)
    ids = torch.arange(6)
    named = (("a", ids), ("b", ids), ("a", ids.view(2, 3)))
    assert len({digest([each]) for each in named}) == 3
    assert digest([("a", torch.ones(2, dtype=torch.bfloat16))])
