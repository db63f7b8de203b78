"""Pruning in pieces gives the folder that pruning in memory gives, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune
from fxprune.compensate.mended import Mended
from fxprune.depth import PPL, score_units
from fxprune.errors import (
    CalibrationError,
    CheckpointError,
    CriterionError,
    FxpruneError,
    ModelError,
    RewriteError,
    SelectionError,
)
from fxprune.hf.folder import in_pieces, shards
from fxprune.hf.open.models import load_model
from fxprune.importance import estimate
from fxprune.proof import oracle
from tests.hf import tiny
from tests.llama import tiny_llama
from tests.marks import but_slow
from tests.zoo import disturb

IDS = torch.randint(3, 90, (8, 13), generator=torch.Generator().manual_seed(1))
EXAMPLE = {"input_ids": IDS[:2]}
OPTIONS: dict[str, Any] = {"calibration": IDS, "pruning_ratio": 0.3, "batch_size": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dense"
    made = tiny_llama(num_hidden_layers=3)
    disturb(made)
    made.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models") / "memory"
    fxprune.prune(load_model(model).model, kwargs=EXAMPLE, **OPTIONS).save(folder)
    return contents(folder)


def run(model: Any, state: Path | None = None, **options: Any) -> fxprune.PruneResult:
    options = {**OPTIONS, "stream": True, **options}
    return fxprune.prune(model, kwargs=EXAMPLE, state=state, **options)


def test_the_folder_is_the_same(model: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    result = run(model)
    result.save(tmp_path / "folder")
    assert contents(tmp_path / "folder") == expected
    assert result.report is not None
    assert result.report.trace.startswith("not compared")
    assert any("leaving the piece" in each.path for each in result.report.outputs)
    run(load_model(model).model, max_memory="64MiB").save(tmp_path / "of a module")
    assert contents(tmp_path / "of a module") == expected


@pytest.mark.parametrize("kind", but_slow(["Mixtral", "Qwen2Moe"], "Qwen2Moe"))
def test_experts_that_a_checkpoint_has_one_by_one(kind: str, tmp_path: Path) -> None:
    """Those of a layer are one tensor in the model; they are joined and parted layer by layer."""
    dense = tmp_path / "dense"
    tiny.experts(kind).save_pretrained(dense)
    assert any(".experts.1." in name for name in shards.names(dense / shards.WEIGHTS))
    fxprune.prune(load_model(dense).model, kwargs=EXAMPLE, **OPTIONS).save(tmp_path / "memory")
    run(dense).save(tmp_path / "pieces")
    assert contents(tmp_path / "memory") == contents(tmp_path / "pieces")


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    tiny.experts("Mixtral").save_pretrained(dense)
    file = dense / shards.WEIGHTS
    tensors = load_file(file)
    del tensors[next(name for name in tensors if ".experts.1." in name)]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.\w+' is not to be had from"):
        run(dense)


@pytest.mark.parametrize("save_as", but_slow(["transformers", "graph"], "transformers"))
def test_blocks_go_in_one_sweep(model: Path, save_as: str, tmp_path: Path) -> None:
    depth = fxprune.Depth(remove=1, keep_first=0, keep_last=0)
    for criterion in ("block-influence", "magnitude"):
        options = {"depth": depth, "depth_criterion": criterion, **OPTIONS}
        known = fxprune.prune(load_model(model).model, kwargs=EXAMPLE, **options)
        known.save(tmp_path / "memory", save_as=save_as)
        found = run(model, **options)
        found.save(tmp_path / "pieces", save_as=save_as)
        assert found.plan.removed == known.plan.removed
        assert contents(tmp_path / "memory") == contents(tmp_path / "pieces")


def dies(call: Callable[[], object]) -> None:
    """Run something in a process of its own, which is killed on the way."""
    process = os.fork()
    if not process:
        try:
            call()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def killing(real: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return killed


STAGES = {
    "scoring": (fxprune.Weights, "read", 30),
    "proving": (oracle, "compare", 1),
    "mending": (Mended, "note", 9),
    "writing": (Mended, "put", 21),
    "saving": (in_pieces.checkpoint, "write_facts", 1),
}


@pytest.mark.parametrize(
    "stage",
    [s if s in ("mending", "saving") else pytest.param(s, marks=pytest.mark.slow) for s in STAGES],
)
def test_a_run_that_was_killed_goes_on(
    stage: str,
    model: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, out = tmp_path / ".state", tmp_path / "out"
    owner, name, count = STAGES[stage]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name), count))
        dies(lambda: run(model, state).save(out))
    assert state.is_dir()
    assert not out.exists()
    written = {file.name: file.stat().st_mtime_ns for file in (state / "mended").glob("[0-9]*")}
    if stage != "scoring":
        import fxprune.stream.iterate as scoring

        monkeypatch.setattr(scoring, "estimate", killing(estimate, 1))  # the scores are there
    result = run(model, state)
    now = {file.name: file.stat().st_mtime_ns for file in (state / "mended").glob("[0-9]*")}
    assert written.items() <= now.items()
    assert (len(written) > 5) == (stage in ("mending", "writing", "saving"))
    result.save(out)
    assert contents(out) == expected
    result.state.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_another_run_begins_anew(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert not run(model, state, compensation=None).state.again
    assert run(model, state, compensation=None).state.again
    assert not run(model, state, compensation=None, pruning_ratio=0.2).state.again
    assert not run(model, state, compensation=None, calibration=IDS[1:]).state.again
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="not of a run in pieces"):
        run(model, tmp_path / "other")


def test_two_runs_do_not_share_a_state(model: Path, tmp_path: Path) -> None:
    state = tmp_path / ".small.pieces"
    options = {**OPTIONS, "criterion": "wanda-sp", "stream": True, "state": state}
    lock = state.with_name(".small.pieces.lock")
    said = pytest.raises(CheckpointError, match="another run is at work on")
    with FileLock(lock), said:  # as another process has it
        fxprune.prune(str(model), **options)
    result = fxprune.prune(str(model), **options)
    assert fxprune.prune(str(model), **options).plan == result.plan  # in one process it is no other
    result.state.end()
    assert not list(tmp_path.iterdir())


def test_bad_weights_are_refused_before_anything_runs(model: Path, tmp_path: Path) -> None:
    def broken(name: str, spoil: Callable[[Path], object]) -> Path:
        folder = tmp_path / name
        shutil.copytree(model, folder)
        spoil(sorted(folder.glob("*.safetensors"))[1])
        return folder

    gone = broken("gone", Path.unlink)
    cut = broken("cut", lambda file: os.truncate(file, file.stat().st_size // 2))

    def other(file: Path) -> None:
        names = shards.names(file)
        with shards.opened(file) as there:
            tensors = {name: there.get_tensor(name) for name in names}
        tensors[names[0]] = tensors[names[0]][:-1].clone()
        from safetensors.torch import save_file

        save_file(tensors, file, {"format": "pt"})

    for folder, words in (
        (gone, "00002-of"),
        (cut, "damaged"),
        (broken("shape", other), "of another model"),
    ):
        with pytest.raises(CheckpointError, match=words):
            run(folder, tmp_path / "state")
        assert not (tmp_path / "state").exists()


def test_too_little_room(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match=r"is below what \w+ needs, .*Give '\d+MiB'"):
        run(model, max_memory="1KiB")
    few = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: few)
    with pytest.raises(CheckpointError, match=r"the result, and what is mended .* takes up to"):
        run(model, tmp_path / "state")
    with pytest.raises(CheckpointError, match="what goes from piece to piece takes up to"):
        run(fxprune.Weights(model, memory=0))
    result = run(model, compensation=None)
    with pytest.raises(CheckpointError, match="the model takes up to"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compensation": "blockwise"}, "least-squares"),
        ({"search": "local"}, "'predicted'"),
        ({"search": "measured", "branches": ("block",)}, "'predicted'"),
        ({"steps": 2}, "one step"),
        ({"budget": fxprune.Budget(latency=0.5), "pruning_ratio": None}, "latency="),
        ({"depth": fxprune.Depth(remove=1)}, r"'ppl' sweeps .*'block-influence'"),
        ({"written_samples": 3}, "written_samples="),
        ({"max_memory": "much"}, "max_memory='much': bytes"),
    ],
)
def test_what_needs_the_whole_model(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        fxprune.PruneConfig(stream=True, **options)


def test_what_else_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="give stream=True too"):
        fxprune.PruneConfig(max_memory="1GiB")
    trained = torch.optim.SGD(tiny_llama().parameters(), lr=0.1)
    refused: list[tuple[type[FxpruneError], dict[str, Any], str]] = [
        (RewriteError, {"optimizer": trained}, "parameter"),
        (CalibrationError, {"calibration": "self"}, "does not write text"),
    ]
    for error, options, words in refused:
        with pytest.raises(error, match=words):
            run(model, **options)
    with pytest.raises(ModelError, match="not a transformers model"):
        fxprune.prune(nn.Linear(3, 3), torch.zeros(2, 3), stream=True)
    traced = fxprune.trace(in_pieces.blank(model).model, kwargs=EXAMPLE)
    with pytest.raises(CriterionError, match="PPL would sweep over all weights 3 times"):
        score_units(traced, PPL(), IDS, stream=fxprune.Weights(model))


def test_chosen_by_itself(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"compensation": None, "verify": False, "stream": False, "criterion": "magnitude"}
    assert run(model, **options).weights is None
    monkeypatch.setattr(in_pieces, "free_memory", lambda device: 1000)
    assert run(model, **options).weights is not None
    assert "GiB of weights, 0.0 GiB of memory free: pruned in pieces" in capsys.readouterr().err
