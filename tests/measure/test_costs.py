"""Cache, memory and time of a model and of its graph."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.measure import cache, memory, speed
from tests.hf import tiny

CACHED = 2 * 2 * 2 * 6 * 4  # layers, keys and values, heads, their size, bytes of a number


def graph_of(model: nn.Module) -> torch.fx.GraphModule:
    traced = fxprune.trace(model)
    return fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))


def test_cache_of_a_model_and_of_its_graph() -> None:
    model = tiny.llama()
    found, how = cache.bytes_per_token(model)
    assert found == CACHED
    assert "measured" in how
    found, how = cache.bytes_per_token(graph_of(model))
    assert found == CACHED
    assert "counted" in how
    assert cache.bytes_per_token(model.to(torch.bfloat16))[0] == CACHED // 2


def test_cache_that_cannot_be_told() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(30, 4)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.embed(input_ids)

    found, why = cache.bytes_per_token(Plain())
    assert found is None
    assert "no example inputs" in why


def test_memory_of_something_large() -> None:
    before = memory.resident()
    if before is None:
        pytest.skip("the system does not tell")
    size = 64 * 2**20
    result, peak = memory.peak(
        torch.device("cpu"), lambda: torch.ones(size, dtype=torch.uint8).sum().item(), before
    )
    assert result == size
    assert peak is None or 0.9 * size < peak < 10 * size
    assert "resident" in memory.meaning(torch.device("cpu"))
    assert "max_memory_allocated" in memory.meaning(torch.device("cuda"))


def test_times() -> None:
    model = tiny.llama()
    once = speed.measure(model, "forward", 2, 10, 0, 2, None, tiny.VOCABULARY)
    assert once.tokens_per_second == pytest.approx(20 / once.seconds)
    assert (once.kind, once.batch, once.prompt, once.new) == ("forward", 2, 10, 0)
    written = speed.measure(model, "generate", 2, 3, 5, 2, None, tiny.VOCABULARY)
    assert written.tokens_per_second == pytest.approx(10 / written.seconds)
    assert written.peak_memory is None
    graph = fx.symbolic_trace(nn.Linear(1, 1))
    again = speed.in_turns([model, graph], [[once, written], []], [tiny.VOCABULARY, 1], 2)
    assert [[each.kind for each in found] for found in again] == [["forward", "generate"], []]
    assert again[0][0].tokens_per_second == pytest.approx(20 / again[0][0].seconds)


def test_why_there_is_no_generation() -> None:
    assert speed.why_not_generate(tiny.llama()) is None
    assert speed.why_not_generate(torch.fx.symbolic_trace(nn.Linear(1, 1))) == speed.NO_GENERATE
    assert "Linear has no generate" in str(speed.why_not_generate(nn.Linear(1, 1)))
