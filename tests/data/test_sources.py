"""What a user may name as calibration data."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fxprune.data.sources import draw, source
from fxprune.data.text import Text, crops
from fxprune.errors import CalibrationError
from tests.hf import tiny

TOKENIZER = tiny.tokenizer()
IDS = torch.arange(60).view(3, 20)


class Rows(dict[str, list[Any]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the datasets library that records its calls."""
    calls: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str) -> Rows:
        calls.append((name, config, split))
        if name == "nowhere":
            raise ConnectionError("no route\nto host")
        return Rows(text=["one", "  ", "two"], body=["three", None], numbers=[1, 2])

    module: Any = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_text_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("prose")
    (tmp_path / "a.jsonl").write_text('{"text": "prose"}\n')
    for name in ("a.txt", "a.jsonl"):
        assert source(tmp_path / name) == Text(name, ("prose",))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_numpy_tokens(dtype: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IDS.numpy().astype(dtype))
    found = source(tmp_path / "a.npy")
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.int64
    assert torch.equal(found, IDS)


def test_safetensors_tokens(tmp_path: Path) -> None:
    save_file({"anything": IDS.int()}, tmp_path / "one.safetensors")
    save_file({"input_ids": IDS, "mask": torch.ones(3, 20)}, tmp_path / "two.safetensors")
    for name in ("one", "two"):
        found = source(tmp_path / f"{name}.safetensors")
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, IDS)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.pkl"])
def test_pickles_are_not_read(name: str, tmp_path: Path) -> None:
    torch.save(IDS, tmp_path / name)
    with pytest.raises(CalibrationError, match=r"is a pickle.*save the token ids as \.safetensors"):
        source(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5), dtype=np.float32), "holds float32: token ids must be integers"),
        (np.zeros(5, dtype=np.int64), r"has shape \(5,\): token ids must have shape \(N, L\)"),
        (np.zeros((0, 5), dtype=np.int64), r"has shape \(0, 5\)"),
        (np.zeros((5, 1), dtype=np.int64), r"has shape \(5, 1\)"),
        (np.full((2, 5), -100), "holds the token id -100: none may be negative"),
        (np.array([["a", {}]], dtype=object), "cannot be read as a numpy array"),
    ],
)
def test_bad_numpy_files(array: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(CalibrationError, match=message):
        source(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.txt", "a.jsonl"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe damaged"])
def test_damaged_and_missing_files(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"{name} cannot be read"):
        source(tmp_path / name)


def test_which_tensor(tmp_path: Path) -> None:
    save_file({"a": IDS, "b": IDS + 1}, tmp_path / "a.safetensors")
    with pytest.raises(CalibrationError, match="2 tensors and none is called input_ids"):
        source(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("spec", "call", "records"),
    [
        ("datasets:prose", ("prose", None, "train"), ("one", "two")),
        ("datasets:org/prose:raw:test", ("org/prose", "raw", "test"), ("one", "two")),
        ("datasets:prose::train[:500]:body", ("prose", None, "train[:500]"), ("three",)),
    ],
)
def test_datasets(
    library: list[Any], spec: str, call: tuple[Any, ...], records: tuple[str, ...]
) -> None:
    found = source(spec)
    assert library == [call]
    assert found == Text(spec.removeprefix("datasets:"), records)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("datasets:", "is not of the form datasets:NAME"),
        ("datasets:a:b:c:d:e", "is not of the form datasets:NAME"),
        ("datasets:nowhere", r"cannot be loaded: no route\. Check the name"),
        ("datasets:prose:::title", "has no column 'title': it has text, body, numbers"),
        ("datasets:prose:::numbers", "has no text in its column 'numbers'"),
    ],
)
def test_bad_datasets(library: list[Any], spec: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        source(spec)


def test_datasets_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match="pip install datasets"):
        source("datasets:prose")


def test_draw_from_text_is_crops() -> None:
    text = Text("t", ("abcdefghij" * 9,))
    assert torch.equal(draw(TOKENIZER, text, 4, 7, 3), crops(TOKENIZER, text, 4, 7, 3))


def test_draw_from_tokens_takes_every_row_once_before_any_twice() -> None:
    drawn = draw(TOKENIZER, IDS, 3, 6, seed=1)
    assert drawn.shape == (3, 6)
    assert sorted((drawn[:, 0] // 20).tolist()) == [0, 1, 2]
    assert (drawn.diff(dim=1) == 1).all()
    assert (drawn[:, 0] // 20 == drawn[:, -1] // 20).all()
    assert draw(TOKENIZER, IDS, 7, 6).shape == (7, 6)


def test_draw_follows_the_seed_and_grows_at_the_end() -> None:
    for data in (IDS, Text("t", ("abcdefghij" * 9, "klmnopqrst" * 9))):
        few, many = (draw(TOKENIZER, data, count, 6, seed=2) for count in (3, 8))
        assert torch.equal(few, many[:3])
        assert not torch.equal(many, draw(TOKENIZER, data, 8, 6, seed=3))


@pytest.mark.parametrize(
    ("ids", "count", "length", "message"),
    [
        (IDS, 2, 21, "have 20 tokens, 21 are needed"),
        (IDS, 0, 5, "take at least 1"),
        (IDS + 200, 1, 5, "token id 259 is not one of the tokenizer's 257"),
    ],
)
def test_draw_refuses(ids: torch.Tensor, count: int, length: int, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        draw(TOKENIZER, ids, count, length)
