"""One process and two, each on one thread: the same scores and plan, and how much sooner.

``python -m benches.processes CALIBRATION`` scores SmolLM2-135M by OBS and by second-order Taylor on
32 crops of 128 tokens, alone and in two processes that share them, and prints seconds of scoring,
the largest relative difference of scores and whether the plans at 20 % are equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune.data.processes import divided
from fxprune.data.text import crops, read
from fxprune.groups.dependency import discover
from fxprune.hf.open.models import load_model
from fxprune.importance.scores import Scores

CRITERIA = {"obs": fxprune.OBS(), "taylor2": fxprune.Taylor(order=2)}
KINDS = ("mlp", "attention")


def scored(calibration: str, folder: Path) -> dict[str, float]:
    """Score, and keep the scores in a folder; the seconds by criterion."""
    torch.set_num_threads(1)
    loaded: Any = load_model("smollm2")
    data = crops(loaded.tokenizer, read(calibration), 32, 128)
    graph = discover(fxprune.trace(loaded.model))
    seconds = {}
    for name, criterion in CRITERIA.items():
        began = time.perf_counter()
        scores = fxprune.estimate(loaded.model, graph, criterion, data, batch_size=8, kinds=KINDS)
        seconds[name] = time.perf_counter() - began
        if os.environ.get("RANK", "0") == "0":
            scores.save(folder / f"{name}.safetensors")
            fxprune.select(graph, scores, pruning_ratio=0.2, kinds=KINDS).save(
                folder / f"{name}.json"
            )
    return seconds


def main() -> None:
    if len(sys.argv) > 2:
        with divided():
            seconds = scored(sys.argv[1], Path(sys.argv[2]))
        Path(sys.argv[2], f"seconds{os.environ['RANK']}").write_text(json.dumps(seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        for count in (1, 2):
            folder = Path(name, str(count))
            folder.mkdir()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(count), "-m", "benches.processes"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, sys.argv[1], str(folder)], env=environment, check=True)
        one, two = (Path(name, str(count)) for count in (1, 2))
        alone, shared = (json.loads((f / "seconds0").read_text()) for f in (one, two))
        for each in CRITERIA:
            old, new = (Scores.load(folder / f"{each}.safetensors") for folder in (one, two))
            apart = max(float(((new[g] - old[g]).abs() / old[g].abs().max()).max()) for g in old)
            plans = [fxprune.Plan.load(folder / f"{each}.json").kept for folder in (one, two)]
            faster = alone[each] / shared[each]
            print(
                f"{each}: {alone[each]:.1f} s, in two processes {shared[each]:.1f} s "
                f"({faster:.2f} x); scores differ by {apart:.1e} of the largest of a group; plans "
                f"{'equal' if plans[0] == plans[1] else 'DIFFER'}"
            )


if __name__ == "__main__":
    main()
