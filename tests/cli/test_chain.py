"""Recovery right behind pruning, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fxprune
from tests.command_line import run_command
from tests.hf import tiny

QUICK = ("--calibration-samples", 3, "--calibration-length", 16, "--eval-samples", 4)


def test_prunes_and_recovers(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = tiny.folder(tmp_path / "model"), tmp_path / "small"
    asked = ("prune", model, "--out", out, "--ratio", 0.1, "--text", text, *QUICK)
    status, printed, errors = run_command(
        monkeypatch, capsys, *asked, "--recover", "full", "--recover-steps", 3
    )
    assert status == 0, errors
    assert "validation loss" in printed
    assert f"recovered: {tmp_path / 'small-recovered' / 'model'}" in printed
    pruned, recovered = fxprune.load(out), fxprune.load(tmp_path / "small-recovered" / "model")
    assert pruned.num_parameters() == recovered.num_parameters()  # type: ignore[union-attr]
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert not torch.equal(pruned(ids).logits, recovered(ids).logits)
    report = json.loads((tmp_path / "small-recovered" / "report.json").read_text())
    assert report["teacher"]["model"] == str(model)
    # The recovered model would be one of other weights: it is left alone, before anything is done.
    status, _, errors = run_command(monkeypatch, capsys, *asked, "--recover", "full")
    assert status == 2
    assert "small-recovered exists" in errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recover", "qlora"), "no method 'qlora'"),
        (("--recover", "lora", "--recover-steps", "0"), "steps is 0"),
        (("--recover", "lora", "--text", "self"), "no text to train on: give --recover-data"),
    ],
)
def test_refused_before_anything_is_pruned(
    tmp_path: Path,
    text: Path,
    options: tuple[str, ...],
    said: str,
    nothing_loads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("prune", tiny.folder(tmp_path / "model"), "--out", tmp_path / "small", "--text", text)
    status, _, errors = run_command(monkeypatch, capsys, *asked, *options)
    assert status == 2
    assert said in errors
    assert not (tmp_path / "small").exists()
