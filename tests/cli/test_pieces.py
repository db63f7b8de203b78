"""``fxprune prune --stream`` and ``--dry-run``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fxprune.hf.folder import in_pieces
from tests.command_line import run_command
from tests.hf import tiny

FEW: tuple[str, ...] = (
    "--calibration-samples", "4", "--compensation-samples", "4", "--calibration-length", "24",
    "--eval-samples", "4", "--eval-length", "24",
)  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    return partial(run_command, monkeypatch, capsys)


def test_the_same_folder(run: Any, dense: Path, text: Path, tmp_path: Path) -> None:
    few = (*FEW, "--text", text)
    status, out, errors = run("prune", dense, "--out", tmp_path / "a", "--stream", *few)
    assert status == 0, errors
    assert "in pieces: not timed" in out
    assert "Running pieces backward" in errors
    status, out, errors = run(
        "prune", dense, "--out", tmp_path / "b", "--written-samples", "0", *few
    )
    assert status == 0, errors
    alike = {file.name for file in (tmp_path / "b").iterdir()} - {"README.md", "report.json"}
    assert "model.safetensors" in alike
    for name in alike:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    mine, other = (json.loads((tmp_path / x / "report.json").read_text()) for x in "ab")
    for when in ("before", "after"):
        assert mine[when]["perplexity"] == pytest.approx(other[when]["perplexity"], rel=1e-5)
        assert mine[when]["macs"] == other[when]["macs"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != text) == ["a", "b"]


def test_layers_of_their_own_sizes_are_measured_too(
    run: Any, dense: Path, text: Path, tmp_path: Path
) -> None:
    options = ("--layer-ratio", "model.layers.0.mlp*=0.5", "--compensate", "none")
    few = (*FEW, "--text", text, "--criterion", "magnitude", "--ratio", "0.05")
    status, out, errors = run("prune", dense, "--out", tmp_path / "a", "--stream", *few, *options)
    assert status == 0, errors
    assert "trust_remote_code" in out
    assert json.loads((tmp_path / "a" / "report.json").read_text())["after"]["perplexity"] > 1


def test_by_itself(
    run: Any, dense: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_pieces, "free_memory", lambda device: 10_000)
    options = ("prune", dense, "--out", tmp_path / "a", *FEW, "--text", text)
    status, _, errors = run(*options, "--compensate", "none")
    assert status == 0, errors
    assert "GiB of memory free: pruned in pieces" in errors
    status, _, errors = run(*options, "--compensate", "blockwise")
    assert status == 2
    assert "--compensate 'blockwise' needs the whole model in memory" in errors
    status, _, errors = run(*options, "--recover", "lora")
    assert status == 2
    assert "run fxprune recover afterwards" in errors


def test_told_before(run: Any, dense: Path, text: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "a", "--dry-run", *FEW)
    status, out, errors = run("prune", dense, *options, "--text", text)
    assert status == 0, errors
    assert "4 pieces" in out
    assert "peak memory of the host: about" in out
    assert "in 10 sweeps" in out
    assert "time: about" in out
    status, out, errors = run("prune", dense / "config.json", *options)
    assert status == 0, errors
    assert "compensat" in out
    assert "time: not told" in out
    status, _, errors = run("prune", dense, *options, "--stream", "--max-memory", "1KiB")
    assert status == 2
    assert "max_memory" in errors or "--max-memory" in errors
    assert not (tmp_path / "a").exists()
