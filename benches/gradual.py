"""Pruning part by part while training against pruning at once, on the same batches.

``python -m benches.gradual TRAINING EVALUATION ... --out RESULTS.jsonl`` trains all parameters of
SmolLM2-135M for 60 steps of 8 x 128 tokens of TRAINING (AdamW, 1e-4 falling to 0) and removes 30 %
of them on the way: all of it after step 13, or on a cubic schedule after steps 13, 26 and 39. Each
pruning scores with ``obs`` and mends by least squares on the last 8 batches. A line of JSON each:
perplexity at 128 and 1024 tokens, and the parameters that are left. Lines that are in RESULTS
already are not measured again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from benches import tables
from fxprune.data import text
from fxprune.hf.open.models import load_model

ROWS, LENGTH, STEPS, RATE = 8, 128, 60, 1e-4
SCHEDULES = {
    "dense": None,
    "at once": lambda ratio: fxprune.Gradual(at={13: ratio}),
    "part by part": lambda ratio: fxprune.Gradual(ratio, end=39, every=13),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("training")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    done = [{k: v for k, v in line.items() if k in _KEY} for line in tables.lines(options.out)]
    for seed in options.seeds:
        for way in options.ways:
            asked = {"way": way, "ratio": options.ratio, "seed": seed, "steps": options.steps}
            if asked in done:
                continue
            loaded = load_model("smollm2", dtype=torch.float32)
            assert loaded.tokenizer is not None
            texts = {Path(path).name: text.read(path) for path in options.evaluations}
            columns = tables.columns(loaded.tokenizer, texts, {128: 64, 1024: 16})
            corpus = text.read(options.training)
            rows = text.crops(loaded.tokenizer, corpus, ROWS * options.steps, LENGTH, seed)
            began = time.perf_counter()
            model = trained(loaded.model, rows, SCHEDULES[way], options.ratio)
            facts = {
                "parameters": sum(each.numel() for each in model.parameters()),
                "seconds": round(time.perf_counter() - began),
            }
            tables.keep(options.out, {**asked, **tables.measured(model.eval(), columns), **facts})


_KEY = ("way", "ratio", "seed", "steps")


def trained(model: nn.Module, rows: torch.Tensor, schedule: Any, ratio: float) -> nn.Module:
    """What is left of the model after a pass over the rows."""
    batches = rows.split(ROWS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    pruner = None
    if schedule is not None:
        pruner = fxprune.GradualPruner(model, optimizer, schedule(ratio))
    for step, ids in enumerate(batches, start=1):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        if pruner is not None:
            model = pruner.after(step, {"input_ids": ids, "labels": ids})
        print(f"step {step}/{len(batches)}: {float(loss.detach()):.3f}", flush=True)
    return model


if __name__ == "__main__":
    main()
