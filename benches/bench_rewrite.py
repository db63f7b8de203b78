"""Rewriting: seconds against bare slicing, and against Torch-Pruning.

``pytest benches/bench_rewrite.py -s``. Bare slicing is an ``index_select`` per weight that loses
units, with nothing around it: no graph, no checks, no module. A copy of all that is kept has the
other weights too, every kept byte read once and written once; a rewrite shares those. Every call
has to ask the system for its memory, as the first one of a process does. Peaks are in
``benches/bench_memory.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fxprune
from benches import apart
from benches.models import GIGABYTE, SMOLLM2, THIN, filled, thinned
from benches.peaks import settle
from benches.peer import OURS, PEER, needs_peer
from benches.sizes import pick
from benches.slicing import sliced, slices, without

REWRITE, SLICING, COPY = "rewrite", "bare slicing", "copy of all that is kept"
SHAPES: dict[str, dict[str, Any]] = pick(
    quick={"thin": THIN}, cpu={"SmolLM2-135M": SMOLLM2, "1.2 GB": GIGABYTE}
)
ROUNDS = pick(quick=2, cpu=15)
# Model, layers, width.
PEERS = pick(
    quick=[("MLP", 2, 32), ("residual CNN", 2, 8)],
    cpu=[("MLP", 16, 64), ("MLP", 16, 2048), ("residual CNN", 16, 16), ("residual CNN", 16, 256)],
)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def without_spare_memory(_: str) -> tuple[()]:
    """Give back what earlier calls have freed; only glibc can be asked to."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        settle()
    return ()


@pytest.mark.parametrize("count", sorted({1, torch.get_num_threads()}))
@pytest.mark.parametrize("name", SHAPES)
def test_against_slicing(bench: Any, name: str, count: int) -> None:
    """Against slicing alone the limit is on the work: the graph takes one thread of any number."""
    traced = fxprune.trace(filled(SHAPES[name]))
    plan = thinned(fxprune.discover(traced), {"mlp": 0.75, "attention": 0.67})
    planned = slices(traced, plan)
    whole = without(traced, planned)
    calls = {
        REWRITE: lambda: fxprune.rewrite(traced, plan),
        SLICING: lambda: sliced(planned),
        COPY: lambda: [*sliced(planned), *(tensor.detach().clone() for tensor in whole)],
    }
    with threads(count):
        times = bench.turns(calls, ROUNDS, prepare=without_spare_memory)
    small = times.results[REWRITE]
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
    written = {call: sum(t.numel() for t in times.results[call]) for call in (SLICING, COPY)}
    shared = {id(tensor) for tensor in whole}
    assert written[SLICING] == sum(p.numel() for p in small.parameters() if id(p) not in shared)
    assert written[COPY] >= plan.parameters_after
    for call in (SLICING, COPY):
        bench.row(
            "MLPs and heads of a Llama, float32",
            {
                "weights": name,
                "threads": count,
                "nodes": len(traced.graph_module.graph.nodes),
                "rewrite, s": times.median(REWRITE),
                "against": call,
                "MiB written": written[call] * 4 / 2**20,
                "s": times.median(call),
                "ratio": times.ratio(REWRITE, call),
            },
        )
    bench.at_most(f"rewrite / {COPY}, {name}, threads: {count}", times.ratio(REWRITE, COPY), 2.0)
    if count == 1:
        bench.at_most(
            f"rewrite / {SLICING}, {name}, one thread", times.ratio(REWRITE, SLICING), 2.0
        )


@needs_peer
@pytest.mark.parametrize(("name", "layers", "width"), PEERS)
def test_against_torch_pruning(bench: Any, name: str, layers: int, width: int) -> None:
    found = bench.run(apart.run, "benches.peer:rewriting", name, layers, width, ROUNDS)
    bench.row(
        "Half of the inner units of every layer, against Torch-Pruning (groups known)",
        {
            "model": name,
            "layers": layers,
            "width": width,
            "fxprune, s": found[OURS],
            "Torch-Pruning, s": found[PEER],
            "ratio": found[OURS] / found[PEER],
        },
    )
