"""One folder of each kind that can be written: ``python -m tests.earlier.folders FOLDER``.

``tests/earlier/written`` was written by version 0.1.0 before the packages were moved. A later
version must open all of it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import fxprune
from fxprune.plan import Plan
from tests.hf import tiny

WRITTEN = Path(__file__).with_name("written")
IDS = torch.arange(3, 19).view(2, 8)


def write(folder: Path) -> None:
    """A plan, scores, a graph, a stock model, and one of uneven layers."""
    model = tiny.llama()
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(model, graph, fxprune.Magnitude())
    scores.save(folder / "scores.safetensors")
    even = {
        group.name: tuple(range(4, group.size)) for group in graph.groups if group.kind == "mlp"
    }
    first = next(name for name in even if "layers.0" in name)
    plan, uneven = Plan.of(graph, even), Plan.of(graph, {first: even[first]})
    plan.save(folder / "plan.json")
    small = fxprune.rewrite(traced, plan)
    fxprune.save(small, folder / "graph", plan=plan, traced=traced, tokenizer=tiny.tokenizer())
    fxprune.save(fxprune.shrink(model, plan, traced=traced), folder / "stock", plan=plan)
    fxprune.save(fxprune.shrink(model, uneven, traced=traced), folder / "uneven", plan=uneven)
    outputs = {}
    for name, module in (("plan", small), ("uneven", fxprune.rewrite(traced, uneven))):
        with torch.no_grad():
            outputs[name] = module(input_ids=IDS).logits
    save_file(outputs, folder / "outputs.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write(Path(sys.argv[1]))
