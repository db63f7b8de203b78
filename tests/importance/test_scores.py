"""Scores on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxprune.errors import CheckpointError
from fxprune.importance import Scores


def test_saves_and_loads(tmp_path: Path) -> None:
    row = torch.rand(5)
    scores = Scores({"a:units": row, "b": row[:2]}, "Taylor()", {"normalise": "none"})
    scores.save(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert loaded.criterion == "Taylor()"
    assert loaded.ranking == {"normalise": "none"}
    assert loaded.keys() == scores.keys()
    assert all(torch.equal(loaded[name], scores[name]) for name in scores)
    assert list(tmp_path.iterdir()) == [tmp_path / "scores.safetensors"]


def test_a_criterion_may_be_unknown(tmp_path: Path) -> None:
    Scores({"a": torch.ones(2)}).save(tmp_path / "s")
    assert Scores.load(tmp_path / "s").criterion is None


def test_repr_is_short() -> None:
    scores = Scores({"a": torch.ones(2), "b": torch.ones(3)}, "Random(seed=0)")
    assert repr(scores) == "Scores(2 groups, 5 units, criterion='Random(seed=0)')"


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the scores"):
        Scores.load(tmp_path / "nowhere")
    Scores({"a": torch.ones(2)}).save(tmp_path / "s")
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cannot read the scores"):
        Scores.load(tmp_path / "s")
    save_file({"a": torch.ones(2)}, tmp_path / "s")
    with pytest.raises(CheckpointError, match="holds tensors, but no fxprune scores"):
        Scores.load(tmp_path / "s")
    save_file({"a": torch.ones(2)}, tmp_path / "s", {"format": "fxprune-scores", "version": "2"})
    with pytest.raises(CheckpointError, match="version '2' is not supported"):
        Scores.load(tmp_path / "s")
