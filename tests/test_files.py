"""What cannot be written is said in one line, before the work where that can be known."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import app as cli
from fxprune.errors import CheckpointError, PlanError
from fxprune.files import check_writable, replacing, write_text, writing
from tests.hf import tiny


@contextlib.contextmanager
def full_disk(limit: int = 2000) -> Iterator[None]:
    """No file can grow beyond so many bytes: the system's own error, as of a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def pruned() -> fxprune.PruneResult:
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 40)).eval()
    return fxprune.prune(
        model, torch.randn(3, 40), pruning_ratio=0.1, criterion=fxprune.Magnitude()
    )


def test_a_full_disk(pruned: fxprune.PruneResult, tmp_path: Path) -> None:
    file = tmp_path / "old"
    file.write_text("old")
    small, where = pruned.graph_module, tmp_path / "model"
    with full_disk():
        with pytest.raises(CheckpointError, match=r"model cannot be written: File too large"):
            fxprune.save(small, where, plan=pruned.plan, traced=pruned.traced)
        with pytest.raises(CheckpointError, match=r"old cannot be written: File too large"):
            write_text(file, "x" * 5000)
        with pytest.raises(CheckpointError, match=r"scores cannot be written: File too large"):
            fxprune.Scores({"a": torch.zeros(5000)}).save(tmp_path / "scores")
        with pytest.raises(CheckpointError, match=r"small.pt2 cannot be written"):
            fxprune.export(small, tmp_path / "small.pt2")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_under_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(CheckpointError, match="m cannot be written: File too large"):
        fxprune.save(tiny.llama(), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file / "out", file / "deep" / "out"):
        with pytest.raises(
            CheckpointError, match=rf"{path} cannot be written: .*file is not a fold"
        ):
            check_writable(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="dangling is not a folder"):
        check_writable(tmp_path / "dangling" / "out")
    with pytest.raises(CheckpointError, match=r"/proc/1/x cannot be written: "):
        check_writable("/proc/1/x")


def test_folders_are_looked_at_before_the_work(
    nothing_loads: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = tmp_path / "file"
    file.write_text("mine")
    source = str(tiny.folder(tmp_path / "m"))
    capsys.readouterr()
    for command in (
        ["prune", source, "--out", str(file / "out")],
        ["prune", source, "--out", str(tmp_path / "o"), "--save-scores", str(file / "s")],
        ["demo", "--out", str(file / "out")],
        ["inspect", source, "--json", str(file / "x.json")],
        ["recover", source, "--data", str(file), "--out", str(file / "out")],
        ["compare", source, "--out", str(file / "out")],
        ["eval", source, "--json", str(file / "x.json")],
    ):
        monkeypatch.setattr("sys.argv", ["fxprune", *command])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr().err.strip()
        assert caught.value.code == 2, command
        assert len(said.splitlines()) == 1, said
        assert "cannot be written" in said or "no folder" in said, said


def test_the_command_line_says_what_the_system_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tiny.folder(tmp_path / "m"), tmp_path / "out"
    plan = tmp_path / "plan.json"
    graph = fxprune.discover(fxprune.trace(tiny.llama()))
    fxprune.Plan.of(graph, {}).save(plan)
    monkeypatch.setattr("sys.argv", ["fxprune", "apply", str(plan), str(source), str(target)])
    with full_disk(), pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2
    assert said.startswith(f"error: {target} cannot be written: File too large"), said
    assert sorted(tmp_path.iterdir()) == [source, plan]

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/there/x")

    monkeypatch.setattr("fxprune.hf.folder.apply.apply", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.strip() == "error: /there/x: No space left on device"


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        _ = 1 / 0
    with pytest.raises(PlanError), replacing(tmp_path / "x"):
        raise PlanError("no plan")
    assert not os.listdir(tmp_path)
