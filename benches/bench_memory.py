"""Peak memory of rewriting, and of looking at big models on ``meta``. Linux only.

``pytest benches/bench_memory.py -s`` prints the figures. Each is taken in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PRELUDE = """
import torch, time
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
import fxprune
from fxprune.plan import Plan

def memory(field):  # bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(field))

def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")
"""

REWRITE = """
# 1.2 GB of weights in layers of LLaMA's proportions.
with torch.device("meta"):
    model = LlamaForCausalLM(LlamaConfig(hidden_size=1536, intermediate_size=4128,
        num_hidden_layers=10, num_attention_heads=12, vocab_size=16000))
traced = fxprune.trace(model.eval())  # once for the compiler's own memory
model = model.to_empty(device="cpu")
with torch.no_grad():
    for p in (*model.parameters(), *model.buffers()):
        p.fill_(0.01)
traced = fxprune.trace(model)
graph = fxprune.discover(traced)
plan = Plan.of(graph, {g.name: tuple(range(g.size * 4 // 5)) for g in graph.groups
                       if g.kind in KINDS})
weights = sum(p.numel() * p.element_size() for p in model.parameters())
before = memory("VmRSS")
reset_peak()
small = fxprune.rewrite(traced, plan, consume=CONSUME)
peak = memory("VmHWM") - (before - weights)
print(f"{weights / 2**20:.0f} MiB of weights, peak {peak / weights:.3f} x weights")
print(peak / weights)
"""

INSPECT = """
import sys
from fxprune.cli import main
start = time.perf_counter()
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
seconds = time.perf_counter() - start
print(f"inspect: {seconds:.1f} s, peak {memory('VmHWM') / 2**30:.2f} GiB")
print(memory("VmHWM") / 2**30)
"""


def measure(code: str, *arguments: str) -> float:
    """Run code in a fresh process, show what it printed, return the last line as a number."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PRELUDE + code), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *report, figure = done.stdout.strip().splitlines()
    print("\n" + report[-1])
    return float(figure)


@pytest.mark.parametrize("kinds", [("mlp", "attention"), ("channel",)], ids=["blocks", "channels"])
@pytest.mark.parametrize("consume", [True, False], ids=["consume", "copy"])
def test_rewrite(kinds: tuple[str, ...], consume: bool) -> None:
    ratio = measure(f"KINDS, CONSUME = {kinds!r}, {consume!r}\n" + REWRITE)
    assert ratio <= (1.15 if consume else 2.0)


LAYERS_32 = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
MODELS = {
    "llama-7b": {**LAYERS_32, "intermediate_size": 11008, "vocab_size": 32000},
    "llama-3-8b": {
        **LAYERS_32,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_inspect(name: str, tmp_path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(**MODELS[name], architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path)
    assert measure(INSPECT, "inspect", str(tmp_path / "config.json")) < 2
