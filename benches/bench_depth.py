"""What a scan by perplexity costs, and what depth and width pruning bring when text is generated.

``pytest benches/bench_depth.py -s``; random weights in the shapes of SmolLM2-135M, float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaForCausalLM

import fxprune
from benches.bench_speed import _model
from fxprune.plan import Plan

BLOCKS, REMOVED, VOCABULARY = 30, 6, 49152
PROMPT, NEW, ROUNDS = 12, 128, 3


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_a_scan_costs_less_than_a_forward_pass_per_block() -> None:
    """10 x 128 tokens, every block, against as many whole forward passes of the same graph."""
    traced = fxprune.trace(_model("sdpa"))
    units = fxprune.find_branches(traced).of("block")
    assert len(units) == BLOCKS
    ids = torch.randint(0, VOCABULARY, (10, 128))
    ratios = []
    with torch.no_grad():
        traced.graph_module(input_ids=ids)
        for _ in range(2):
            whole = [timed(lambda: traced.graph_module(input_ids=ids)) for _ in range(2)]
            scan = timed(lambda: fxprune.score_units(traced, fxprune.PPL(), ids, units=units))
            whole += [timed(lambda: traced.graph_module(input_ids=ids)) for _ in range(2)]
            ratios.append(scan / (BLOCKS * statistics.median(whole)))
    ratio = statistics.median(ratios)
    shown = ", ".join(f"{each:.3f}" for each in ratios)
    print(f"\nscan of {BLOCKS} blocks: {ratio:.3f} of {BLOCKS} forward passes ({shown})")
    assert ratio <= 0.75


def test_generation_at_batch_1() -> None:
    """12 tokens in, 128 out, key/value cache; dense, depth and width in turns."""
    dense = _model("sdpa")
    traced = fxprune.trace(dense)
    removed = fxprune.choose_depth(
        traced,
        fxprune.Depth(remove=REMOVED),
        fxprune.Random(0),
    ).removed
    plan = Plan.of(fxprune.discover(fxprune.bypass(traced, removed)), {})
    depth = fxprune.shrink(dense, plan)
    # As many parameters from the MLPs of all layers alone.
    units = round(1536 - (plan.parameters_before - plan.parameters_after) / (BLOCKS * 3 * 576))
    width = _model("sdpa", intermediate_size=units)
    models = {"dense": dense, "depth": depth, "width": width}
    sizes = {name: _read_per_token(model) for name, model in models.items()}
    for model in models.values():
        model.config.use_cache = True
    ids = torch.randint(0, VOCABULARY, (1, PROMPT))
    times: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(ROUNDS + 1):
        names = list(models) if round_ % 2 else list(reversed(models))
        for name in names:
            seconds = timed(lambda name=name: _generate(models[name], ids))
            if round_:
                times[name].append(seconds)
    print(f"\n{PROMPT} + {NEW} tokens at batch 1, {ROUNDS} rounds in turns")
    print("model  parameters   tokens/s  speed-up (per round)      ideal")
    speedups = {}
    for name, model in models.items():
        pairs = zip(times["dense"], times[name], strict=True)
        each = sorted(there / here for there, here in pairs)
        speedups[name] = statistics.median(each)
        ideal = sizes["dense"] / sizes[name]
        count = sum(p.numel() for p in model.parameters())
        rate = NEW / statistics.median(times[name])
        print(
            f"{name:6} {count:11,} {rate:9.1f}   {speedups[name]:.3f}"
            f" ({each[0]:.3f} to {each[-1]:.3f})   {ideal:.3f}"
        )
    assert speedups["depth"] >= 0.95 * sizes["dense"] / sizes["depth"]


def _read_per_token(model: LlamaForCausalLM) -> int:
    """Bytes of the weights that one token reads: all, the tied embedding as the head."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@torch.no_grad()
def _generate(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    assert made.shape == (1, PROMPT + NEW)
