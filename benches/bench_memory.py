"""Peak memory of rewriting, and of looking at big models on ``meta``.

``pytest benches/bench_memory.py -s``. Each figure is taken in a process of its own. Linux only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benches import apart
from benches.peer import PEER, needs_peer
from benches.sizes import pick

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SHAPE = pick(quick="thin", cpu="1.2 GB")
LIMITS = {"consume": 1.15, "copy": 2.0}


@pytest.mark.parametrize("kinds", [("mlp", "attention"), ("channel",)], ids=["blocks", "channels"])
@pytest.mark.parametrize("how", [*LIMITS, "slicing"])
def test_rewrite(bench: Any, kinds: tuple[str, ...], how: str) -> None:
    found = bench.run(apart.run, "benches.peaks:rewriting", SHAPE, kinds, how)
    weights, peak = found["weights"], found["peak"]
    assert found["kept"] < weights <= peak
    bench.row(
        "Removing a fifth of the units of a Llama, float32: peak, the original included",
        {
            "weights, MiB": round(weights / 2**20),
            "kinds": ", ".join(kinds),
            "how": {"slicing": "bare slicing"}.get(how, f"rewrite, {how}"),
            "peak, MiB": round(peak / 2**20),
            "x weights": peak / weights,
        },
    )
    if how in LIMITS:
        bench.at_most(f"{', '.join(kinds)}, {how}: peak / weights", peak / weights, LIMITS[how])


@pytest.mark.parametrize("how", [*LIMITS, pytest.param(PEER, marks=needs_peer)])
def test_against_torch_pruning(bench: Any, how: str) -> None:
    layers, width = pick(quick=(2, 512), cpu=(16, 4096))
    found = bench.run(apart.run, "benches.peaks:halving", "MLP", layers, width, how)
    weights, peak = found["weights"], found["peak"]
    assert found["kept"] < weights <= peak
    bench.row(
        f"Removing half of the units of an MLP, {layers} x {width}, the original included",
        {
            "weights, MiB": round(weights / 2**20),
            "how": how if how == PEER else f"rewrite, {how}",
            "peak, MiB": round(peak / 2**20),
            "x weights": peak / weights,
        },
    )


DEEP = pick(quick="thin", cpu="2.9 GB")
ROWS = pick(quick=2, cpu=8)


@pytest.mark.parametrize("criterion", ["wanda-sp", "taylor", "taylor2", "obs"])
def test_scoring_in_pieces(bench: Any, criterion: str) -> None:
    each = {
        how: bench.run(apart.run, "benches.peaks:pieces", DEEP, criterion, how, ROWS, 128)
        for how in ("memory", "pieces")
    }
    for how, found in each.items():
        bench.row(
            f"Scoring a checkpoint of 24 blocks, float32, {ROWS} x 128 tokens two at a time, peak",
            {
                "criterion": criterion,
                "how": how,
                "peak, MiB": round(found["peak"] / 2**20),
                "x weights": found["peak"] / found["weights"],
                "CPU s": found["seconds"],
            },
        )
    for key in ("first", "last"):
        assert each["pieces"][key] == pytest.approx(each["memory"][key], rel=1e-5)
    streamed = each["pieces"]
    bench.at_most(f"{criterion}: peak / weights", streamed["peak"] / streamed["weights"], 0.30)
    ratio = streamed["seconds"] / each["memory"]["seconds"]
    bench.at_most(f"{criterion}: CPU s of memory", ratio, 1.3 if criterion == "wanda-sp" else 1.8)


@pytest.mark.parametrize("criterion", ["obs", "taylor2"])
def test_pruning_in_pieces(bench: Any, criterion: str) -> None:
    each = {
        how: bench.run(apart.run, "benches.peaks:pruning", DEEP, criterion, how, ROWS // 2, 128)
        for how in ("memory", "pieces")
    }
    for how, found in each.items():
        bench.row(
            "Pruning a checkpoint of 24 blocks, float32, from end to end: anonymous memory, peak",
            {
                "criterion": criterion,
                "how": how,
                "peak, MiB": round(found["peak"] / 2**20),
                "x weights": found["peak"] / found["weights"],
                "activations, MiB": round(found["activations"] / 2**20),
                "CPU s": found["seconds"],
                "compensation, s": found["compensation"],
            },
        )
    memory, streamed = each["memory"], each["pieces"]
    assert streamed["digest"] == memory["digest"]
    above = (streamed["peak"] - streamed["activations"]) / streamed["weights"]
    bench.at_most(f"{criterion}: peak above activations / weights", above, 0.30)
    for what, most in (("compensation", 1.3), ("seconds", 1.8)):
        bench.at_most(f"{criterion}: {what} / memory", streamed[what] / memory[what], most)


LAYERS_32 = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
MODELS: dict[str, dict[str, int]] = {
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
def test_inspect(bench: Any, name: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    config = MODELS[name] | pick(quick={"num_hidden_layers": 2}, cpu={})
    made = LlamaConfig(**config, architectures=["LlamaForCausalLM"])
    made.save_pretrained(tmp_path)
    found = bench.run(apart.run, "benches.peaks:inspect", str(tmp_path / "config.json"))
    gib = found["peak"] / 2**30
    bench.row("fxprune inspect", {"model": name, "s": found["seconds"], "peak, GiB": gib})
    bench.at_most(f"inspect {name}: peak, GiB", gib, 2)
