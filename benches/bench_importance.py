"""Importance: seconds and peak memory of every criterion against the naive loop.

``pytest benches/bench_importance.py -s``. The naive loop (:mod:`benches.naive`) keeps all gradients
or all inputs and then adds up; it gives the same scores. Each peak is taken in a process of its own
after a warm-up, in which freed memory goes back to the system at once (Linux only).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import fxprune
from benches import apart, naive
from benches.models import QUARTER, THIN, llama
from benches.sizes import pick
from fxprune.importance import NAMES, by_name, estimate

# Times the weights, without activations.
LIMITS = {"taylor": 1.5, "taylor2": 2.6}
SHAPE = pick(quick="thin", cpu="1.2 GB")
# Takes apart a matrix of inputs by inputs for every layer, which at 4128 is a minute each.
SMALLER = {"obs": pick(quick="thin", cpu="0.25 GB")}
ROWS, LENGTH = pick(quick=(2, 16), cpu=(4, 64), full=(10, 128))
ROUNDS = pick(quick=1, cpu=5)
TIMED: dict[str, Any] = pick(quick=THIN, cpu=QUARTER)
OURS, NAIVE = "fxprune", "naive loop"


@functools.cache
def model() -> LlamaForCausalLM:
    return llama(TIMED)


@functools.cache
def graph() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model()))


def test_every_criterion_is_here() -> None:
    assert {*naive.CRITERIA} == {*NAMES} - {"random"}


@pytest.mark.parametrize("criterion", naive.CRITERIA)
def test_seconds(bench: Any, criterion: str) -> None:
    ids = torch.randint(0, TIMED["vocab_size"], (ROWS, LENGTH))
    asked = by_name(criterion)
    calls = {
        OURS: lambda: estimate(model(), graph(), asked, ids, kinds=naive.KINDS),
        NAIVE: lambda: naive.scores(model(), criterion, ids),
    }
    times = bench.turns(calls, ROUNDS)
    expected = times.results[NAIVE]
    assert times.results[OURS].keys() == expected.keys()
    for name, scores in times.results[OURS].items():
        other = expected[name].detach().float()
        assert torch.corrcoef(torch.stack([scores, other]))[0, 1] > 0.999 or len(other) == 1
        if criterion != "obs":  # whose order of removal hangs on the last digit
            torch.testing.assert_close(
                scores, other, rtol=2e-3, atol=2e-4 * float(other.abs().max())
            )
    count = sum(p.numel() for p in model().parameters())
    bench.row(
        f"Seconds on {ROWS} x {LENGTH} tokens, a Llama of {count:,} parameters, float32",
        {
            "criterion": criterion,
            "fxprune, s": times.median(OURS),
            "naive loop, s": times.median(NAIVE),
            "ratio": times.ratio(OURS, NAIVE),
        },
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("criterion", naive.CRITERIA)
def test_peak(bench: Any, criterion: str) -> None:
    backward = criterion in (*naive.GRADIENT, "obs")
    methods = ["fxprune", "naive", *(["activations"] if backward else [])]
    peaks = bench.run(lambda: {m: peak(criterion, m) for m in methods})
    activations = peaks.get("activations", 0.0)
    bench.row(
        f"Peak on {ROWS} x {LENGTH} tokens, x weights",
        {
            "criterion": criterion,
            "weights": SMALLER.get(criterion, SHAPE),
            "activations": activations if backward else None,
            "fxprune": 1 + peaks["fxprune"],
            "naive loop": 1 + peaks["naive"],
            "fxprune without activations": 1 + peaks["fxprune"] - activations,
            "naive without activations": 1 + peaks["naive"] - activations,
        },
    )
    if criterion in LIMITS:
        rest = 1 + peaks["fxprune"] - activations
        bench.at_most(f"{criterion}, without activations, x weights", rest, LIMITS[criterion])


def peak(criterion: str, how: str) -> float:
    """Growth at the peak, in multiples of the weights."""
    shape = SMALLER.get(criterion, SHAPE)
    found = apart.run("benches.peaks:importance", shape, criterion, how, ROWS, LENGTH)
    return found["growth"] / found["weights"]
