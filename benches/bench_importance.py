"""Peak memory of Taylor scores on 1.2 GB of weights. Linux only.

``pytest benches/bench_importance.py -s`` prints the figures. Each is taken in a process of its own,
after a warm-up, in which freed memory goes back to the system at once.

Activations are what a forward and a backward pass take at most where no parameter requires a
gradient and the embedded input does. They grow with the tokens and not with the method, so they are
taken apart. Beside it runs what needs no library: one backward pass, all gradients kept, then the
scores; to second order the squares of every sample are kept as well.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LIMITS = {1: 1.5, 2: 2.6}  # times the weights, without activations
SEQUENCES, LENGTH = 4, 64
# Else glibc keeps freed blocks of up to 32 MiB for itself.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}

CODE = """
import ctypes, gc, sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
import fxprune
from fxprune.importance import Taylor, estimate

def memory(field):  # bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(field))

method, order, sequences, length = sys.argv[1], *map(int, sys.argv[2:])
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=1536, intermediate_size=4128,
        num_hidden_layers=10, num_attention_heads=12, vocab_size=16000)).eval()
graph = fxprune.discover(fxprune.trace(model))
model = model.to_empty(device="cpu")
torch.manual_seed(0)
for p in model.parameters():
    torch.nn.init.normal_(p, std=0.02)
model.model.rotary_emb.__init__(model.config)  # its frequencies were on meta

def activations(ids):
    for p in model.parameters():
        p.requires_grad_(False)
    for part in ids.split(1 if order == 2 else len(ids)):
        embedded = model.model.embed_tokens(part).requires_grad_()
        model(inputs_embeds=embedded, labels=part, use_cache=False).loss.backward()

def fxprune_scores(ids):
    estimate(model, graph, Taylor(order=order), ids, kinds=("mlp", "attention"))

def naive(ids):
    squares = {}
    for part in ids.split(1 if order == 2 else len(ids)):
        model(part, labels=part, use_cache=False).loss.backward()
        for p in model.parameters() if order == 2 else ():
            square = p.grad.square()
            squares[p] = squares[p].add_(square) if p in squares else square
            p.grad = None
    for p in model.parameters():
        score = p.detach() * p.grad if order == 1 else p.detach().square() * squares[p]
        score.abs().sum()
    model.zero_grad()

ids = torch.randint(0, 16000, (sequences, length))
weights = sum(p.numel() * p.element_size() for p in model.parameters())
run = {"activations": activations, "fxprune": fxprune_scores, "naive": naive}[method]
run(ids[:1, :8])
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
run(ids)
print(f"{weights / 2**20:.0f}", (memory("VmHWM") - before) / weights)
"""


def beyond_weights(method: str, order: int) -> float:
    """Peak memory of a method above the weights, in multiples of the weights."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, method]
        + [str(n) for n in (order, SEQUENCES, LENGTH)],
        env={**os.environ, **MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize("order", LIMITS)
def test_taylor(order: int) -> None:
    methods = ("activations", "fxprune", "naive")
    activations, ours, naive = (beyond_weights(method, order) for method in methods)
    print(
        f"\norder {order}, {SEQUENCES} x {LENGTH} tokens, activations {activations:.2f} x weights"
    )
    for name, peak in (("fxprune", ours), ("naive", naive)):
        rest = 1 + peak - activations
        print(f"{name}: peak {1 + peak:.2f} x weights, {rest:.2f} x without activations")
    assert 1 + ours - activations <= LIMITS[order]
