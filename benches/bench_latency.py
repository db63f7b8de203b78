"""A budget of latency on SmolLM2, held against a measurement afterwards.

``pytest benches/bench_latency.py -s``; fetches SmolLM2 once. The table is measured anew.
"""

from __future__ import annotations

from typing import Any

import torch

import fxprune
from fxprune.hf.open.models import load_model
from fxprune.measure import report

SHAPE, STAYS, TOLERANCE = (1, 128), 0.8, 0.05


def test_budget(bench: Any) -> None:
    model = load_model("smollm2", dtype=torch.float32).model
    graph = fxprune.discover(fxprune.trace(model))
    table = bench.run(fxprune.measure_latency, graph, SHAPE, cache=False)
    found = fxprune.prune(
        model,
        budget=fxprune.Budget(latency=STAYS, shape=SHAPE),
        criterion=fxprune.Magnitude(),
        ranking="global",
        latency=table,
        verify=False,
    )
    assert found.latency is not None
    assert found.latency.measured is not None
    # What users run, too: modules of transformers, whose own overhead does not shrink.
    small = fxprune.shrink(model, found.plan, found.graph_module)
    inputs = report.resized(found.traced.kwargs, *SHAPE)
    calls = {
        "dense": report.forward(model, (), inputs),
        "shrunk": report.forward(small, (), inputs),
    }
    modules = bench.turns(calls, 15)
    bench.row(
        f"Budget of latency on SmolLM2-135M, {SHAPE[0]} x {SHAPE[1]} tokens, by magnitude",
        {
            "asked": STAYS,
            "predicted": found.latency.predicted,
            "measured, graphs": found.latency.measured,
            "measured, modules of transformers": modules.median("shrunk") / modules.median("dense"),
            "parameters that stay": found.plan.parameters_after / found.plan.parameters_before,
        },
    )
    off = abs(found.latency.measured / STAYS - 1)
    bench.at_most("measured latency, off the budget by", off, TOLERANCE)
