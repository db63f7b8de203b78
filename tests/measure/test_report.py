"""Costs against numbers worked out by hand."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch import nn

import fxprune
from fxprune.measure import report
from fxprune.measure.report import Measurement
from tests.hf import tiny


def _printed(made: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_parameters_count_ties_once() -> None:
    tied, untied = tiny.llama(), tiny.llama(tie_word_embeddings=False)
    assert report.parameters(untied) - report.parameters(tied) == tiny.VOCABULARY * 24


def test_size_is_of_each_storage_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(3, 5).half()})
    model["c"] = model["a"]
    assert report.size(model) == 20 * 4 + 20 * 2
    assert report.size(model.to("meta")) == 20 * 4 + 20 * 2


def _llama_macs(config: transformers.LlamaConfig, tokens: int) -> int:
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size, kv = config.head_dim, config.num_key_value_heads
    dense = 2 * width * heads * size + 2 * width * kv * size + 3 * width * inner
    attention = 2 * tokens * heads * size
    layer = tokens * (dense + attention)
    return config.num_hidden_layers * layer + tokens * width * config.vocab_size


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_of_a_transformer(attention: str, device: str) -> None:
    config = tiny.config()
    config._attn_implementation = attention
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
        ids = torch.zeros(1, 64, dtype=torch.long)
    assert report.macs(model, (), {"input_ids": ids}) == _llama_macs(config, 64)


def test_macs_of_a_graph_are_those_of_its_module() -> None:
    model = tiny.llama()
    inputs = {"input_ids": torch.zeros(1, 64, dtype=torch.long)}
    graph = fxprune.trace(model, kwargs={"input_ids": inputs["input_ids"].expand(2, -1)})
    assert report.macs(graph.graph_module, (), inputs) == report.macs(model, (), inputs)


def test_macs_of_llama_7b_without_weights() -> None:
    config = transformers.LlamaConfig(vocab_size=32000)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        ids = torch.zeros(1, 64, dtype=torch.long)
    assert report.parameters(model) == 6_738_415_616
    assert report.macs(model, (), {"input_ids": ids}) == 423_926_693_888


def test_macs_of_a_convolution() -> None:
    model = nn.Conv2d(3, 8, 3, padding=1, groups=1)
    assert report.macs(model, (torch.zeros(1, 3, 10, 10),)) == 8 * 10 * 10 * 3 * 9


def test_macs_compute_nothing() -> None:
    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not isinstance(x.sum(), torch.Tensor) or type(x) is not torch.Tensor
            return super().forward(x)

    assert report.macs(Watched(4, 4), (torch.zeros(2, 4),)) == 32


def test_latency_takes_turns_and_gives_medians() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            time.sleep(seconds)

        return run

    fast, slow = report.latency([call("a", 0.001), call("b", 0.02)], rounds=4)
    assert order == ["a", "b"] * 5
    assert 0.001 <= fast < slow
    assert slow >= 0.02


def test_latency_stops_when_time_is_up() -> None:
    calls = []
    report.latency([lambda: calls.append(1)], rounds=1000, seconds=0)
    assert len(calls) == 4  # one to warm up and three that count


def test_forward_keeps_no_gradients() -> None:
    output = report.forward(nn.Linear(2, 2), (torch.ones(1, 2),))()
    assert isinstance(output, torch.Tensor)
    assert not output.requires_grad


def test_table() -> None:
    before = Measurement(134_515_008, 8_748_269_568, 538_060_032, 21.4, 1.0519)
    after = Measurement(107_611_776, 6_980_000_000, 430_447_104, 42.8, 0.945)
    shown = _printed(report.table(before, after))
    for cell in ("134,515,008", "8.75 G", "538.06 MB", "21.40", "1051.9 ms"):
        assert cell in shown
    for change in ("-20.0 %", "+100.0 %", "-10.2 %"):
        assert change in shown


def test_table_leaves_out_what_nobody_measured() -> None:
    shown = _printed(report.table(Measurement(10, 5), Measurement(8, None)))
    assert "perplexity" not in shown
    assert [line.split()[-4:] for line in shown.splitlines() if "MACs" in line] == [
        ["│", "-", "│", "│"]
    ]


def test_json() -> None:
    content = report.as_json(Measurement(10), Measurement(8, perplexity=2.5))
    assert content["before"]["parameters"] == 10
    assert content["after"]["perplexity"] == 2.5


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 "), (999, "999 "), (1000, "1.00 k"), (134_515_008, "134.52 M"), (3e15, "3000.00 T")],
)
def test_scaled(number: float, words: str) -> None:
    assert report.scaled(number) == words


def test_resized_inputs() -> None:
    inputs = {"ids": torch.zeros(2, 11, dtype=torch.long), "image": torch.zeros(2, 3, 8, 8)}
    made = report.resized(inputs, 4, 128)
    assert made["ids"].shape == (4, 128)
    assert made["ids"].dtype == torch.long
    assert made["image"].shape == (4, 3, 8, 8)
    assert report.shape_words(made) == "4 x 128 tokens"
    assert report.shape_words(made["image"]) == "4 x 3 x 8 x 8"
