"""The allocator's rules, and what is allocated."""

from __future__ import annotations

import pytest
import torch

import fxprune
from benches.allocator import allocated, memory_estimate
from fxprune.errors import CostError
from tests.llama import tiny_llama
from tests.test_conformance import discovered

MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (0, 0),
        (1, 512),
        (512, 512),
        (513, 1024),
        (9 * MIB + 1, 9 * MIB + 512),
        (10 * MIB, 10 * MIB),
        (13 * MIB, 14 * MIB),  # 1 MiB is left over: too little to split off
        (13 * MIB - 512, 13 * MIB - 512),
        (13 * MIB + 1, 14 * MIB),
        (32 * MIB, 32 * MIB),
    ],
)
def test_blocks(size: int, block: int) -> None:
    assert allocated(size) == block


def rounded(*sizes: int) -> int:
    return sum(-(-size // 512) * 512 for size in sizes)


def test_a_small_model() -> None:
    """Width 36, 6 query and 3 key/value heads of 6, 40 units, vocabulary 90, two layers."""
    graph = fxprune.discover(fxprune.trace(tiny_llama()))
    matrices = [36 * 36, 18 * 36, 18 * 36, 36 * 36, 40 * 36, 40 * 36, 36 * 40, 36, 36]
    numbers = [90 * 36, 90 * 36, 36, *matrices, *matrices]
    halves = rounded(*(2 * n for n in numbers))
    assert memory_estimate(graph, context=None) == halves
    assert memory_estimate(graph, context=None, dtype=torch.float32) == rounded(
        *(4 * n for n in numbers)
    )
    tables = 2 * rounded(2 * 2048 * 6, 2 * 2048 * 6, 2 * 3)
    assert memory_estimate(graph) == halves + tables
    assert memory_estimate(graph, context=100) == halves + 2 * rounded(1200, 1200, 6)
    units = {g.dim: 20 for g in graph.groups if g.kind == "mlp"}
    fewer = 2 * 3 * (rounded(2 * 40 * 36) - rounded(2 * 20 * 36))
    assert memory_estimate(graph, units, context=None) == halves - fewer


def test_tied_tensors_once() -> None:
    tied, untied = (
        memory_estimate(fxprune.discover(fxprune.trace(tiny_llama(tie_word_embeddings=tie))))
        for tie in (True, False)
    )
    assert untied - tied == rounded(2 * 90 * 36)


def test_running_statistics_are_allocated() -> None:
    graph = discovered("resnet", "eager")
    module = graph.traced.module
    state = [(t.numel(), 2 if t.is_floating_point() else 8) for t in module.state_dict().values()]
    assert memory_estimate(graph) == rounded(*(numel * width for numel, width in state))


def test_no_rotary_no_tables() -> None:
    graph = discovered("gpt2", "sdpa")
    assert memory_estimate(graph) == memory_estimate(graph, context=None)


def test_negative_context() -> None:
    with pytest.raises(CostError, match="not negative"):
        memory_estimate(discovered("gpt2", "sdpa"), context=-1)
