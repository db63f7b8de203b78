"""A run that was killed goes on to the same end; a folder of something else is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerState

from fxprune.errors import RecoveryError
from fxprune.recover import runs
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.recover import Recovery
from fxprune.recover.runs import ADAPTER
from fxprune.recover.trainer import RecoveryTrainer
from tests.recover.cases import IDS, METHODS, assert_same, case, pruned, run, state_of

ROOT = Path(__file__).parents[2]
FACTS = ("log.csv", "log.json", "loss.svg", "run.json")

# Two epochs, so that the order of the second counts; two passes in a step; dropout.
WHOLE: dict[str, Any] = {
    "steps": 8,
    "micro_batch_size": 2,
    "evaluate_every": 2,
    "validation": IDS[:6],
    "learning_rate": 1e-2,
    "checkpoints": 2,
}


def start(out: Path | None, method: str = "lora", kind: str = "shrunk", **changes: Any) -> Recovery:
    return run(pruned(kind), METHODS[method], out=out, **{**WHOLE, **changes})


def course(result: Recovery) -> list[Any]:
    """All that is told of a run but its time."""
    steps = [
        (each.step, each.loss, each.learning_rate, each.gradient_norm, each.tokens)
        for each in result.history.steps
    ]
    return [steps, result.history.evaluations, result.step, result.trained]


def assert_as_unbroken(found: Recovery, method: str = "lora", **changes: Any) -> None:
    expected = start(None, method, **changes)
    assert course(found) == course(expected)
    assert_same(found.module, state_of(expected.module))


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / runs.CHECKPOINTS).iterdir()}


class Killed(BaseException):
    """Stands for a kill: nothing of the loop handles it."""


def die_in(patch: Any, pass_: int, kill: Any) -> None:
    """Be killed in a forward and backward pass, the first being 1."""
    passes, step = [0], RecoveryTrainer.training_step

    def counted(self: Any, *args: Any) -> Any:
        passes[0] += 1
        if passes[0] == pass_:
            kill()
        return step(self, *args)

    patch.setattr(RecoveryTrainer, "training_step", counted)


def die_writing(patch: Any, step: int, kill: Any, torn: bool = False) -> None:
    """Be killed in a checkpoint: before its state is written, or while it is."""
    write = TrainerState.save_to_json

    def cut(self: Any, path: str) -> None:
        if self.global_step == step:
            if torn:
                write(self, path)
                content = Path(path).read_bytes()
                Path(path).write_bytes(content[: len(content) // 2])
            kill()
        write(self, path)

    patch.setattr(TrainerState, "save_to_json", cut)


def raise_killed() -> None:
    raise Killed


def broken(out: Path, die: Any, *when: Any, method: str = "lora", **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        die(patch, *when)
        with pytest.raises(Killed):
            start(out, method, **changes)


# Going on


@pytest.mark.slow
def test_killed_for_good(tmp_path: Path) -> None:
    """By SIGKILL, between the two passes of the sixth step."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.recover.test_runs", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert checkpoints(out) == {"checkpoint-2", "checkpoint-4"}
    assert not (out / "log.json").exists()
    assert_as_unbroken(start(out))
    assert {path.name for path in out.iterdir()} == {*FACTS, ADAPTER, runs.CHECKPOINTS}


@pytest.mark.parametrize(("method", "torn"), [("lora", False), ("full", True)])
def test_killed_in_a_checkpoint(method: str, torn: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken(out, die_writing, 6, raise_killed, torn, method=method)
    assert checkpoints(out) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert (out / runs.CHECKPOINTS / "checkpoint-6" / runs.STATE).exists() == torn
    # It goes on behind the fourth step, and the sixth is made once more.
    with pytest.MonkeyPatch.context() as patch:
        passes: list[int] = []
        step = RecoveryTrainer.training_step
        patch.setattr(
            RecoveryTrainer,
            "training_step",
            lambda self, *args: passes.append(self.state.global_step) or step(self, *args),
        )
        found = start(out, method)
    assert passes == [4, 4, 5, 5, 6, 6, 7, 7]
    assert_as_unbroken(found, method)


def test_killed_twice(tmp_path: Path) -> None:
    """Before the first checkpoint, and in the second epoch; all weights of the graph."""
    out = tmp_path / "out"
    options: dict[str, Any] = {"method": "full", "kind": "graph"}
    broken(out, die_in, 2, raise_killed, **options)
    assert runs.last_checkpoint(out / runs.CHECKPOINTS) is None
    broken(out, die_in, 12, raise_killed, **options)
    assert_as_unbroken(start(out, **options), **options)


def test_killed_in_the_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken(out, die_writing, 8, raise_killed, keep_best=False)
    assert_as_unbroken(start(out, keep_best=False), keep_best=False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_best": False},
        {"patience": 1, "learning_rate": 9.0, "warmup": 0, "evaluate_every": 1, "method": "full"},
    ],
)
@pytest.mark.filterwarnings("ignore:recovery made the validation loss no better")
def test_a_finished_run_trains_no_more(changes: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(out, **changes)
    if "patience" in changes:
        assert len(first.history.steps) < 8
    before = (out / "log.csv").read_bytes()
    # As if it was killed between its last checkpoint and its end.
    for name in FACTS[:3]:
        (out / name).unlink()
    shutil.rmtree(out / ADAPTER, ignore_errors=True)
    shutil.move(out, tmp_path / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecoveryTrainer, "training_step", lambda *_: pytest.fail("it trains"))
        again = start(tmp_path / "moved", **changes)
    assert course(again) == course(first)
    assert_same(again.module, state_of(first.module))
    assert (tmp_path / "moved" / "log.csv").read_bytes() == before
    assert (tmp_path / "moved" / ADAPTER).exists() == ("method" not in changes)


def test_a_moved_run_goes_on_and_finds_its_best(tmp_path: Path) -> None:
    """The best evaluation is the first: what follows makes it worse."""
    options = {
        "steps": 6, "learning_rate": 9.0, "warmup": 0, "evaluate_every": 1, "method": "full",
        "schedule": "constant", "max_grad_norm": 0, "micro_batch_size": 4,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="no better"):
        whole = start(None, **options)
    assert whole.step < 4
    broken(tmp_path / "one", die_in, 5, raise_killed, **options)
    shutil.move(tmp_path / "one", tmp_path / "two")
    with pytest.warns(UserWarning, match="no better"):
        found = start(tmp_path / "two", **options)
    assert course(found) == course(whole)
    assert_same(found.module, state_of(whole.module))


# Other runs and other folders


def other_data() -> torch.Tensor:
    changed = IDS.clone()
    changed[7, 3] += 1
    return changed


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"module": lambda: pruned("shrunk", "mlp")}, "module"),
        ({"method": LoRA(rank=2, dropout=0.06)}, "method"),
        ({"method": FullTraining()}, "method"),
        ({"method": LoRA(rank=2, dropout=0.05, teacher=case()[0])}, "method"),
        ({"learning_rate": 1.1e-2}, "training"),
        ({"seed": 1}, "training, data"),
        ({"data": other_data()}, "data"),
        ({"validation": IDS[:5]}, "data"),
        ({"steps": 4, "data": IDS[:19]}, "training, data"),
    ],
)
def test_another_run(changes: dict[str, Any], differ: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    options = {
        "module": lambda: pruned("shrunk"), "method": METHODS["lora"], "data": IDS, "steps": 2,
        "learning_rate": 1e-2, "validation": 0.2, **changes,
    }  # fmt: skip
    module = options.pop("module")()
    with pytest.raises(RecoveryError) as error:
        run(module, options.pop("method"), options.pop("data"), out=folder, **options)
    assert f"holds a run with another {differ}: give another folder" in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of two steps."""
    out = tmp_path_factory.mktemp("runs") / "out"
    run(pruned("shrunk"), METHODS["lora"], steps=2, learning_rate=1e-2, validation=0.2, out=out)
    return out


@pytest.mark.parametrize("what", ["full", "file", "damaged"])
def test_what_is_no_run(what: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("mine")
        kept, message = out, "exists and holds no run of recovery: it is left alone"
    else:
        out.mkdir()
        kept = out / ("thesis.tex" if what == "full" else "run.json")
        kept.write_text("mine")
        message = "it is left alone" if what == "full" else "is damaged"
    with pytest.raises(RecoveryError, match=message):
        run(pruned("shrunk"), METHODS["lora"], out=out, steps=1)
    assert kept.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    run(pruned("shrunk"), METHODS["lora"], out=tmp_path, steps=1)
    assert (tmp_path / "run.json").is_file()


def test_whole_and_partial_checkpoints(tmp_path: Path) -> None:
    for name, state in {
        "checkpoint-9": '{"global_step": 9}',
        "checkpoint-10": '{"global_step": 10}',
        "checkpoint-11": '{"global_step": 10}',
        "checkpoint-12": '{"global_step": 1',
        "checkpoint-13": "[]",
        "checkpoint-14": None,
        "notes": None,
    }.items():
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / runs.STATE).write_text(state)
    assert runs.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert runs.last_checkpoint(tmp_path / "nothing") is None
    runs.forget_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10", "notes"}


def test_a_folder_that_must_be_new(tmp_path: Path) -> None:
    runs.check_new(tmp_path / "new")
    runs.check_new(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecoveryError, match="it is left alone"):
        runs.check_new(tmp_path)
    with pytest.raises(RecoveryError, match="it is left alone"):
        runs.check_new(tmp_path / "run.json")


if __name__ == "__main__":
    torch.set_num_threads(1)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as forever:
        die_in(forever, 12, kill)
        start(Path(sys.argv[1]))
