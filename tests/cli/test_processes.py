"""``fxprune prune`` in two processes: the plan of one, one folder, one message."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fxprune
from fxprune.data.processes import divided
from fxprune.plan import Plan
from tests.data.test_processes import launched
from tests.hf import tiny

PROSE = "\n\n".join(f"This is paragraph number {i}, and it is short." for i in range(200))


@pytest.mark.slow
def test_prune(tmp_path: Path) -> None:
    dense, text = tiny.folder(tmp_path / "dense"), tmp_path / "prose.txt"
    text.write_text(PROSE)
    # Training would make more of the last digits of sums, in which processes differ.
    options = ("--ratio", "0.2", "--compensate", "least-squares")
    arguments = ["fxprune", "prune", dense, "--text", text, *options, "--out"]
    for processes in (1, 2):
        done = launched(*arguments, tmp_path / str(processes), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("saved in") == 1
        assert done.stderr.count("tracing") == 1
    one, two = (tmp_path / str(processes) for processes in (1, 2))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    plans = [Plan.load(folder / "plan.json").kept for folder in (one, two)]
    assert plans[0] == plans[1]
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bad_input_is_said_once(tmp_path: Path) -> None:
    dense, text = tiny.folder(tmp_path / "dense"), tmp_path / "short.txt"
    text.write_text("Too short.")
    done = launched("fxprune", "prune", dense, "--text", text, "--out", tmp_path / "out")
    assert done.returncode
    assert done.stderr.count("error: ") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_process_that_dies_ends_all(tmp_path: Path) -> None:
    done = launched("tests.cli.test_processes", tmp_path)
    assert done.returncode
    assert "waits for another that has ended" in (tmp_path / "0").read_text()


if __name__ == "__main__":  # the second process ends in the middle of the work
    with divided() as group:
        assert group is not None
        model = tiny.llama()
        graph = fxprune.discover(fxprune.trace(model))
        data = torch.randint(3, 80, (4, 16), generator=torch.Generator().manual_seed(0))
        if group.rank == 1:
            model.register_forward_pre_hook(lambda *_: os._exit(9))
        try:
            fxprune.estimate(model, graph, fxprune.Taylor(), data)
        except fxprune.FxpruneError as error:
            (Path(sys.argv[1]) / str(group.rank)).write_text(str(error))
            raise
