"""Forward passes: dense, masked, rewritten graph, shrunk model and the same shapes built by hand.

``pytest benches/bench_speed.py -s``. Interleaved runs, random weights in the shapes of SmolLM2-135M
pruned by about 20 %, float32. Masked is the original with the removed units switched off
(:mod:`fxprune.proof.masked`). The ideal is the ratio of MACs, and that of the bytes of weights.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import fxprune
from benches.models import SMOLLM2, llama
from benches.sizes import pick
from fxprune.measure import report
from fxprune.plan import Plan
from fxprune.proof.masked import Masked
from fxprune.rewrite.planned import planned

SMALL = {
    "hidden_size": 72,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "vocab_size": 500,
    "tie_word_embeddings": True,
}
SHAPE: dict[str, Any] = pick(quick=SMALL, cpu=SMOLLM2)
UNITS, KEPT_HEADS = SHAPE["intermediate_size"], 2
KEPT_UNITS = pick(quick=190, cpu=1142)
LENGTH = pick(quick=16, cpu=128)
BATCHES = pick(quick=(1, 2), cpu=(1, 8, 32))
ROUNDS, WARM_UP = pick(quick=(1, 1), cpu=(9, 2), full=(20, 10))
FEW = pick(quick=(1, 1), cpu=(3, 1), full=(20, 10))  # seconds each
# What the C++ compiler needs minutes for.
COMPILED_LAYERS = pick(quick=1, cpu=8, full=30)
MODES = [("eager", "eager"), ("eager", "sdpa"), ("compiled", "sdpa")]
LIMITS = {"eager": 1.05, "compiled": 1.02}
DENSE, MASKED, GRAPH, SHRUNK, HAND = "dense", "masked", "graph", "shrunk", "by hand"


def _model(attention: str, **options: Any) -> LlamaForCausalLM:
    return llama(SHAPE, attn_implementation=attention, **options)


@functools.cache
def models(attention: str, layers: int) -> dict[str, Any]:
    dense = _model(attention, num_hidden_layers=layers)
    traced = fxprune.trace(dense)
    graph = fxprune.discover(traced)
    kept = {"mlp": tuple(range(KEPT_UNITS)), "attention": tuple(range(KEPT_HEADS))}
    plan = Plan.of(graph, {g.name: kept[g.kind] for g in graph.groups if g.kind in kept})
    small = fxprune.rewrite(traced, plan)
    shrunk = fxprune.shrink(dense, plan, small)
    by_hand = _model(
        attention,
        num_hidden_layers=layers,
        intermediate_size=KEPT_UNITS,
        num_attention_heads=3 * KEPT_HEADS,
        num_key_value_heads=KEPT_HEADS,
    )
    # The same tensors: where they lie in memory makes a difference of 2 % either way.
    by_hand.load_state_dict(shrunk.state_dict(), assign=True)
    by_hand.tie_weights()
    places = [{p.data_ptr() for p in m.parameters()} for m in (small, shrunk, by_hand)]
    assert places[0] == places[1] == places[2]
    assert plan.parameters_after == report.parameters(by_hand) == report.parameters(small)
    masked = Masked(graph.traced, *planned(traced, plan))
    return {DENSE: dense, MASKED: masked, GRAPH: small, SHRUNK: shrunk, HAND: by_hand}


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model, Masked):
            output = model.run(ids, enable_io_processing=False)
        else:
            output = model(input_ids=ids)
    found = next(x for x in torch.utils._pytree.tree_leaves(output) if torch.is_tensor(x))
    return found if found.ndim == 3 else output.logits


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("mode", "attention"), MODES, ids=map("-".join, MODES))
def test_forward(bench: Any, mode: str, attention: str, batch: int) -> None:
    warnings.simplefilter("ignore")  # of the compiler
    layers = COMPILED_LAYERS if mode == "compiled" else SHAPE["num_hidden_layers"]
    chosen = dict(models(attention, layers))
    plain: dict[str, nn.Module] = {n: m for n, m in chosen.items() if n != MASKED}
    if mode == "compiled":
        torch._dynamo.reset()
        chosen = {name: torch.compile(model) for name, model in plain.items()}
    ids = torch.randint(0, SHAPE["vocab_size"], (batch, LENGTH))
    calls: dict[str, Callable[[], torch.Tensor]] = {
        name: functools.partial(logits, model, ids) for name, model in chosen.items()
    }
    rounds, warm_up = (ROUNDS, WARM_UP) if batch < 32 else FEW
    times = bench.turns(calls, rounds, warm_up=warm_up)
    for name in chosen.keys() - {DENSE, HAND}:
        torch.testing.assert_close(
            times.results[name], times.results[HAND], rtol=1e-3, atol=1e-3, msg=name
        )
    macs = {n: report.macs(m, (), {"input_ids": ids}) for n, m in plain.items()}
    sizes = {name: report.parameters(model) for name, model in plain.items()}
    for name in chosen:
        known = DENSE if name == MASKED else name
        bench.row(
            f"{mode}, {attention} attention, {layers} layers, {LENGTH} tokens",
            {
                "batch": batch,
                "model": name,
                "ms": 1000 * times.median(name),
                "speed-up": times.ratio(DENSE, name),
                "ideal by MACs": macs[DENSE] / macs[known],
                "ideal by bytes": sizes[DENSE] / sizes[known],
                "x by hand": times.ratio(name, HAND),
            },
        )
    what = f"graph / by hand, {mode}, {attention} attention, batch {batch}"
    bench.at_most(what, times.ratio(GRAPH, HAND), LIMITS[mode])


def test_aligned_widths(bench: Any) -> None:
    """MLP widths as the budget gives them, and as multiples of 64 within the same budget."""
    dense = _model("sdpa")
    traced = fxprune.trace(dense)
    graph = fxprune.discover(traced)
    scores = {group.name: torch.rand(group.size) for group in graph.groups}
    ratio = 0.15
    plans = {
        "unaligned": fxprune.select(graph, scores, ratio, ("mlp",)),
        "multiple_of=64": fxprune.select(graph, scores, ratio, ("mlp",), multiple_of=64),
    }
    ids = torch.randint(0, SHAPE["vocab_size"], (BATCHES[1], LENGTH))
    chosen: dict[str, nn.Module] = {DENSE: dense}
    chosen |= {name: fxprune.rewrite(traced, plan) for name, plan in plans.items()}
    times = bench.turns(
        {name: functools.partial(logits, model, ids) for name, model in chosen.items()},
        ROUNDS,
        warm_up=WARM_UP,
    )
    for name, model in chosen.items():
        # Alike but for a unit here and there.
        widths = [UNITS] if name == DENSE else sorted(map(len, plans[name].kept.values()))
        if name == "multiple_of=64":
            assert all(width % 64 == 0 for width in widths)
        parameters = report.parameters(model)
        bench.row(
            f"Aligned widths: eager, {BATCHES[1]} x {LENGTH} tokens",
            {
                "model": name,
                "MLP width": " to ".join(map(str, sorted({widths[0], widths[-1]}))),
                "parameters": parameters,
                "ms": 1000 * times.median(name),
                "speed-up": times.ratio(DENSE, name),
                "ideal by bytes": report.parameters(dense) / parameters,
            },
        )
