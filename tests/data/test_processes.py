"""Two processes with half of the data each find what one finds with all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.data.processes import Processes, current, divided
from tests.hf import tiny
from tests.zoo import BY_NAME

ROOT = Path(__file__).parents[2]
DRAW = torch.Generator().manual_seed(0)
DATA = [
    torch.randint(3, 80, (5, 12), generator=DRAW),
    {
        "input_ids": torch.randint(3, 80, (4, 20), generator=DRAW),
        "attention_mask": (torch.arange(20) < torch.tensor([20, 15, 9, 20])[:, None]).long(),
    },
    torch.randint(3, 80, (1, 30), generator=DRAW),
    torch.randint(3, 80, (1, 30), generator=DRAW),
]
PLAIN = [each["input_ids"] if isinstance(each, dict) else each for each in DATA]
KINDS = ("mlp", "attention")
CRITERIA = {
    "taylor": fxprune.Taylor(),
    "taylor2": fxprune.Taylor(order=2),
    "mixed": fxprune.Taylor(order="mixed"),
    "obs": fxprune.OBS(),
    "wanda-sp": fxprune.WandaSP(),
    "flap": fxprune.FLAP(),
    "peak-to-peak": fxprune.PeakToPeak(),
}


def found() -> dict[str, Any]:
    """Scores by every criterion, plans and mended weights, of a Llama and of experts."""
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    model = tiny.llama()
    graph = fxprune.discover(fxprune.trace(model))
    every = fxprune.estimate(model, graph, list(CRITERIA.values()), DATA, kinds=KINDS)
    for name, scores in zip(CRITERIA, every, strict=True):
        facts[name] = {group: vector.tolist() for group, vector in scores.items()}
    plan = fxprune.select(graph, every[3], pruning_ratio=0.2, kinds=KINDS, gain_bias=True)
    facts["plan"] = {group: list(kept) for group, kept in plan.kept.items()}
    for method in ("least-squares", "bias"):
        small = fxprune.rewrite(graph.traced, plan, share=False)
        fxprune.compensate(graph.traced, small, plan, PLAIN, method=method, batch_size=2)
        facts[method] = {name: t.flatten().tolist() for name, t in small.state_dict().items()}
    mixture = BY_NAME["mixtral"].build("eager")
    graph = fxprune.discover(fxprune.trace(mixture, *BY_NAME["mixtral"].example()))
    for name, criterion in {"experts": fxprune.REAP(), "obs of experts": fxprune.OBS()}.items():
        kinds = ("expert",) if name == "experts" else ("mlp",)
        scores = fxprune.estimate(mixture, graph, criterion, DATA[:1], kinds=kinds)
        facts[name] = {group: vector.tolist() for group, vector in scores.items()}
    return facts


def launched(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RANK", None)
    return subprocess.run(
        command, cwd=ROOT, env=environment, timeout=400, capture_output=True, text=True
    )


def close(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(
            torch.tensor(other[name]), torch.tensor(values), rtol=1e-5, atol=1e-6, msg=name
        )


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    done = launched("tests.data.test_processes", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # to the last bit
    expected = json.loads(json.dumps(found()))
    assert first.keys() == expected.keys()
    for name, values in expected.items():
        if name.endswith("plan"):
            assert first[name] == values
        else:
            close(values, first[name])


def test_shares_are_all_of_the_data_once() -> None:
    """Rows of each batch, and single rows in turn."""

    class Alone(Processes):
        def _check_same(self, data: Any) -> None:
            pass

    data = [{"input_ids": torch.arange(n * 2).view(n, 2) + 100 * n} for n in (5, 1, 7, 1, 1, 2)]
    for count in (2, 3, 4):
        parts = [[b for _, b in Alone(rank, count).share(data)] for rank in range(count)]
        rows = torch.cat([b["input_ids"] for each in parts for b in each])
        every = torch.cat([b["input_ids"] for b in data])
        assert sorted(rows.tolist()) == sorted(every.tolist())
        sizes = [sum(len(b["input_ids"]) for b in each) for each in parts]
        assert max(sizes) - min(sizes) <= 3
    with pytest.raises(fxprune.errors.CalibrationError, match="2 calibration sequences for 3"):
        Alone(0, 3).share(data[-1:])


def test_one_process_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with divided() as among:
        assert among is None
        assert current() is None


if __name__ == "__main__":
    with divided() as group:
        assert group is not None
        facts = found()
        (Path(sys.argv[1]) / f"{group.rank}.json").write_text(json.dumps(facts))
