"""The course of a run as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fxprune.errors import RecoveryError
from fxprune.recover.history import Evaluation, History, Step, smooth

LOG = [
    {"eval_loss": 5.0, "step": 0},
    {"loss": 4.0, "grad_norm": 2.0, "learning_rate": 0.1, "tokens": 10, "seconds": 2.0, "step": 1},
    {"loss": 3.0, "grad_norm": 1.0, "learning_rate": 0.2, "tokens": 20, "seconds": 1.0, "step": 2},
    {"eval_loss": 3.5, "eval_runtime": 1.0, "step": 2},
    {"train_loss": 3.5, "train_runtime": 9.0, "step": 2},
]
HISTORY = History(
    (Step(1, 4.0, 0.1, 2.0, 10, 2.0), Step(2, 3.0, 0.2, 1.0, 20, 1.0)),
    (Evaluation(0, 5.0), Evaluation(2, 3.5)),
)


def test_reads_what_trainer_logged() -> None:
    assert History.of(LOG) == HISTORY
    # A resumed run that logs a step once more has it once.
    assert History.of([*LOG[:2], *LOG[1:]]) == HISTORY


def test_figures() -> None:
    assert HISTORY.tokens_per_second == 10
    assert HISTORY.best == Evaluation(2, 3.5)
    assert History(HISTORY.steps, (Evaluation(0, 1.0),)).best is None
    assert smooth([4.0, 2.0, 0.0], window=2) == [4.0, 3.0, 1.0]


def test_files(tmp_path: Path) -> None:
    HISTORY.write(tmp_path)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["loss"] for row in rows] == ["", "4.0", "3.0"]
    assert [row["validation_loss"] for row in rows] == ["5.0", "", "3.5"]
    content = json.loads((tmp_path / "log.json").read_text())
    assert History.load(tmp_path / "log.json") == HISTORY
    assert content["evaluations"] == [{"step": 0, "loss": 5.0}, {"step": 2, "loss": 3.5}]
    picture = (tmp_path / "loss.svg").read_text()
    assert "validation" in picture
    assert "loss per token, nats" in picture
    History(HISTORY.steps, ()).write(tmp_path)
    assert "validation" not in (tmp_path / "loss.svg").read_text()


def test_a_log_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('{"steps": [{"loss": 1.0}]}')
    for name in ("log.json", "nowhere.json"):
        with pytest.raises(RecoveryError, match=f"{name} is not a log of a run"):
            History.load(tmp_path / name)
