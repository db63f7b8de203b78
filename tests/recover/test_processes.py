"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.recover.methods import LoRA
from fxprune.recover.recover import Recovery, recover
from fxprune.recover.settings import Training
from tests.hf import tiny

ROOT = Path(__file__).parents[2]
ROWS = torch.randint(3, 9, (40, 12), generator=torch.Generator().manual_seed(0))
TRAINING = Training(steps=6, batch_size=8, length=12, learning_rate=1e-2, evaluate_every=3)


def subjects() -> Iterator[tuple[str, Any]]:
    """The graph and the shrunk model of one plan, made anew."""
    for kind in ("graph", "shrunk"):
        model = tiny.llama()
        result = fxprune.prune(model, pruning_ratio=0.1, criterion=fxprune.Magnitude())
        small = result.graph_module
        yield kind, small if kind == "graph" else fxprune.shrink(model, result.plan, small)


def told(done: Recovery) -> dict[str, Any]:
    """Losses and last weights."""
    return {
        "steps": [(step.loss, step.tokens) for step in done.history.steps],
        "validation": [each.loss for each in done.history.evaluations],
        "weights": {name: p.flatten().tolist() for name, p in done.module.named_parameters()},
    }


def run(out: Path) -> dict[str, Any]:
    """Recover the graph and the shrunk model of one plan."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    for kind, module in subjects():
        done = recover(
            module,
            ROWS,
            LoRA(dropout=0.0),
            training=TRAINING,
            # 11 rows: they divide evenly neither into batches nor among processes.
            validation=ROWS[:11, :9],
            out=out / kind,
            device="cpu",
        )
        facts[kind] = told(done)
    return facts


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # Without a GPU in sight this is how accelerate starts processes on one machine; the backend
    # is gloo then.
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", port),
        *("-m", "tests.recover.test_processes", tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [str(each) for each in command], cwd=ROOT, env=environment, timeout=400, check=True
    )
    one = json.loads(json.dumps(run(tmp_path / "one")))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert first["backend"] == "gloo"
    for kind, expected in one.items():
        for found in (first[kind], second[kind]):
            for name in ("steps", "validation"):
                torch.testing.assert_close(
                    torch.tensor(found[name]), torch.tensor(expected[name]), rtol=1e-4, atol=0
                )
            for name, weights in expected["weights"].items():
                torch.testing.assert_close(
                    torch.tensor(found["weights"][name]),
                    torch.tensor(weights),
                    rtol=0,
                    atol=1e-5,
                )


if __name__ == "__main__":
    import safetensors.torch
    import torch.distributed as dist

    from fxprune.recover.history import History
    from fxprune.recover.loop import Loop

    if os.environ["RANK"] != "0":  # one process writes; called elsewhere, these are not callable
        writes = ((History, "write"), (Loop, "save_adapter"), (safetensors.torch, "save_file"))
        for owner, name in writes:
            setattr(owner, name, None)
    found = run(Path(sys.argv[1], "two"))
    found |= {"processes": dist.get_world_size(), "backend": dist.get_backend()}
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(found))
