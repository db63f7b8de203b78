"""Depth: what a scan by perplexity costs, and generation of depth- and width-pruned models.

``pytest benches/bench_depth.py -s``; random weights in the shapes of SmolLM2-135M, float32. Width
is pruned to as many parameters as depth, from the MLPs of all layers alone. The ideal is the ratio
of the bytes that a token reads: all weights, the tied embedding as the head.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import fxprune
from benches.bench_speed import SHAPE, UNITS, _model
from benches.sizes import pick
from fxprune.measure import report
from fxprune.measure.speed import generated
from fxprune.plan import Plan

BLOCKS, VOCABULARY = SHAPE["num_hidden_layers"], SHAPE["vocab_size"]
REMOVED = pick(quick=1, cpu=6)
PROMPT, NEW = 12, pick(quick=4, cpu=128)
BATCHES = (1, 8)
ROUNDS, WARM_UP = pick(quick=(1, 1), cpu=(3, 1), full=(20, 10))


def test_a_scan_costs_less_than_a_forward_pass_per_block(bench: Any) -> None:
    """10 x 128 tokens, every block, against as many whole forward passes of the same graph."""
    traced = fxprune.trace(_model("sdpa"))
    units = fxprune.find_branches(traced).of("block")
    assert len(units) == BLOCKS
    ids = torch.randint(0, VOCABULARY, pick(quick=(2, 16), cpu=(10, 128)))

    def whole() -> None:
        with torch.no_grad():
            for _ in range(4):
                traced.graph_module(input_ids=ids)

    def scan() -> fxprune.Scores:
        return fxprune.score_units(traced, fxprune.PPL(), ids, units=units)

    times = bench.turns({"scan": scan, "four passes": whole}, pick(quick=1, cpu=3))
    assert len(times.results["scan"]) == BLOCKS
    ratio = 4 * times.ratio("scan", "four passes") / BLOCKS
    bench.row(
        f"A scan of {BLOCKS} blocks by perplexity, {ids.shape[0]} x {ids.shape[1]} tokens",
        {
            "scan, s": times.median("scan"),
            "forward pass, s": times.median("four passes") / 4,
            "scan / (blocks x forward pass)": ratio,
        },
    )
    bench.at_most("scan / (blocks x forward pass)", ratio, 0.75)


@functools.cache
def models() -> dict[str, Any]:
    dense = _model("sdpa")
    traced = fxprune.trace(dense)
    removed = fxprune.choose_depth(traced, fxprune.Depth(remove=REMOVED), fxprune.Random(0)).removed
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, removed)), {})
    per_unit = BLOCKS * 3 * SHAPE["hidden_size"]
    units = round(UNITS - (plan.parameters_before - plan.parameters_after) / per_unit)
    return {
        "dense": dense,
        "depth": fxprune.shrink(dense, plan),
        "width": _model("sdpa", intermediate_size=units),
        "width, multiple of 64": _model("sdpa", intermediate_size=units // 64 * 64),
    }


@pytest.mark.parametrize("batch", BATCHES)
def test_generation(bench: Any, batch: int) -> None:
    ids = torch.randint(0, VOCABULARY, (batch, PROMPT))
    calls = {n: functools.partial(generated, m, ids, NEW) for n, m in models().items()}
    times = bench.turns(calls, ROUNDS, warm_up=WARM_UP)
    sizes = {name: report.parameters(model) for name, model in models().items()}
    assert abs(sizes["depth"] - sizes["width"]) < BLOCKS * 3 * SHAPE["hidden_size"]
    for name, model in models().items():
        bench.row(
            f"Generation with a cache, {PROMPT} + {NEW} tokens",
            {
                "batch": batch,
                "model": name,
                "layers": model.config.num_hidden_layers,
                "MLP width": model.config.intermediate_size,
                "parameters": sizes[name],
                "tokens/s": batch * NEW / times.median(name),
                "speed-up": times.ratio("dense", name),
                "ideal": sizes["dense"] / sizes[name],
            },
        )
    if batch == 1:
        share = times.ratio("dense", "depth") * sizes["depth"] / sizes["dense"]
        bench.at_least("depth, batch 1: speed-up / ideal", share, 0.95)
