"""FSDP2 by accelerate's own configuration: two processes train to the curve of one.

accelerate shards on GPUs alone. In the processes started here it takes the CPU for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.errors import RecoveryError
from fxprune.recover import sharded
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.recover import recover
from fxprune.recover.settings import Training
from tests.recover.test_processes import subjects, told

ROOT = Path(__file__).parents[2]
ROWS = torch.randint(3, 9, (36, 12), generator=torch.Generator().manual_seed(0))
TRAINING = Training(
    steps=6, batch_size=12, length=12, learning_rate=1e-2, evaluate_every=2, keep_best=False
)


def run(out: Path) -> dict[str, Any]:
    """All of a graph is trained, and adapters of a shrunk model: losses and last weights."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    for kind, module in subjects():
        method = FullTraining() if kind == "graph" else LoRA(dropout=0.0)
        done = recover(
            module,
            ROWS,
            method,
            training=TRAINING,
            validation=ROWS[:11, :9],
            out=out / kind,
            device="cpu",
        )
        assert done.module is module or kind == "shrunk"
        assert not any("DTensor" in type(p).__name__ for p in done.module.parameters())
        facts[kind] = told(done)
    return facts


def launch(processes: int, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp"),
        *("--fsdp_version", "2", "--num_processes", str(processes), "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *("-m", "tests.recover.test_sharded", str(out), *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=ROOT, env=environment, timeout=400, capture_output=True, text=True
    )


def check(expected: dict[str, Any], file: Path) -> None:
    found = json.loads(file.read_text())
    for kind, values in expected.items():
        for name in ("steps", "validation"):
            one, other = (torch.tensor(each[kind][name]) for each in (expected, found))
            torch.testing.assert_close(other, one, rtol=1e-5, atol=0)
        for name, weights in values["weights"].items():
            there = torch.tensor(found[kind]["weights"][name])
            torch.testing.assert_close(there, torch.tensor(weights), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_and_a_kill_and_a_third(tmp_path: Path) -> None:
    expected = json.loads(json.dumps(run(tmp_path / "one")))
    done = launch(2, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    check(expected, tmp_path / "two" / "0.json")
    check(expected, tmp_path / "two" / "1.json")
    for processes in (2, 3):  # go on where the kill was
        out = tmp_path / f"killed {processes}"
        done = launch(2, out, "die")
        assert done.returncode
        assert [p.name for p in (out / "graph" / "checkpoints").iterdir()] == ["checkpoint-4"]
        done = launch(processes, out)
        assert done.returncode == 0, done.stderr[-3000:]
        check(expected, out / "0.json")


def test_what_cannot_be_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sharded.is_sharded()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecoveryError, match="launch with --fsdp_version 2"):
        sharded.is_sharded()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert sharded.is_sharded()
    with pytest.raises(RecoveryError, match="leave out hidden="):
        sharded.to_shard(torch.nn.Linear(1, 1), hidden=True)


def _on_cpus() -> None:
    """Let accelerate take processes on a CPU for those of GPUs."""
    from accelerate import state
    from accelerate.utils import DistributedType

    kind: Any = state.PartialState
    kind._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    kind.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    torch.distributed.init_process_group("gloo")


def _die() -> None:
    """In the fifth step, behind the checkpoint of the fourth."""
    from fxprune.recover.trainer import RecoveryTrainer

    whole: Any = RecoveryTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            os._exit(9)
        return whole(self, *args, **kwargs)

    RecoveryTrainer.training_step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    _on_cpus()
    if len(sys.argv) > 2:
        _die()
    folder = Path(sys.argv[1])
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(run(folder)))
