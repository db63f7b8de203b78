"""A budget of latency on SmolLM2, held against a measurement afterwards.

``pytest benches/bench_latency.py -s``; fetches SmolLM2 once. The table is measured anew.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import fxprune
from fxprune import report
from fxprune.hf.models import load_model

SHAPE, STAYS, TOLERANCE = (1, 128), 0.8, 0.05


def test_budget(benchmark: Any) -> None:
    model = load_model("smollm2", dtype=torch.float32).model
    graph = fxprune.discover(fxprune.trace(model))
    start = time.perf_counter()
    table = benchmark.pedantic(fxprune.measure_latency, (graph, SHAPE), {"cache": False}, rounds=1)
    seconds = time.perf_counter() - start
    found = fxprune.prune(
        model,
        budget=fxprune.Budget(latency=STAYS, shape=SHAPE),
        criterion=fxprune.Magnitude(),
        ranking="global",
        latency=table,
        verify=False,
    )
    assert found.latency is not None
    # What users run, too: modules of transformers, whose own overhead does not shrink.
    small = fxprune.shrink(model, found.plan, found.graph_module)
    inputs = report.resized(found.traced.kwargs, *SHAPE)
    whole, less = report.latency([report.forward(m, (), inputs) for m in (model, small)])
    removed = 1 - found.plan.parameters_after / found.plan.parameters_before
    print(f"\n{table.machine}: table measured in {seconds:.0f} s; {removed:.1%} of parameters go")
    print(f"graph: {found.latency}")
    print(
        f"modules of transformers: {less / whole:.3f} x ({1e3 * whole:.0f} to {1e3 * less:.0f} ms)"
    )
    benchmark.extra_info.update(
        asked=STAYS,
        predicted=found.latency.predicted,
        measured=found.latency.measured,
        modules=less / whole,
        removed=removed,
    )
    assert abs(found.latency.measured / STAYS - 1) <= TOLERANCE
