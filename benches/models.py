"""Models of random weights that the benches share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan

# A module with what it is called with.
Called = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
# LLaMA's proportions, 1.2 GB in float32.
GIGABYTE: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 4128,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 128,
    "vocab_size": 16000,
}
# 0.25 GB.
QUARTER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}
# Time goes into the graph, not into the weights.
THIN: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "vocab_size": 101,
}


def llama(shape: dict[str, Any], **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{"use_cache": False, **shape, **options})).eval()


def filled(shape: dict[str, Any], **options: Any) -> LlamaForCausalLM:
    """As :func:`llama`, weights all alike: for what does not depend on them, and much sooner."""
    with torch.device("meta"):
        model = llama(shape, **options)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    model.model.rotary_emb.__init__(model.config)  # its frequencies were on meta
    return model


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inner)))


def mlp(layers: int, width: int = 32) -> Called:
    torch.manual_seed(0)
    pairs = [[nn.Linear(width, width), nn.ReLU()] for _ in range(layers)]
    made = nn.Sequential(*(each for pair in pairs for each in pair), nn.Linear(width, 10))
    return made.eval(), (torch.randn(2, width),), {}


def cnn(layers: int, width: int = 16) -> Called:
    torch.manual_seed(0)
    blocks = [Residual(width) for _ in range(layers)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    made = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, *head)
    return made.eval(), (torch.randn(2, 3, 16, 16),), {}


def gpt2(layers: int, width: int = 32) -> Called:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=4, vocab_size=101, n_positions=64, use_cache=False
    )
    return GPT2LMHeadModel(config).eval(), (), _ids()


def llama_mha(layers: int) -> Called:
    """A thin Llama whose queries are not grouped."""
    return llama({**THIN, "num_key_value_heads": 6}, num_hidden_layers=layers), (), _ids()


def llama_gqa(layers: int) -> Called:
    """A thin Llama with grouped queries."""
    return llama(THIN, num_hidden_layers=layers), (), _ids()


MODELS = {
    "MLP": mlp,
    "residual CNN": cnn,
    "GPT-2": gpt2,
    "Llama": llama_mha,
    "Llama, grouped queries": llama_gqa,
}


def thinned(graph: DependencyGraph, kept: dict[str, float]) -> Plan:
    """The plan that keeps the first units of the groups of some kinds, by fraction."""
    return Plan.of(
        graph,
        {
            group.name: tuple(range(max(1, int(group.size * kept[group.kind]))))
            for group in graph.groups
            if group.kind in kept
        },
    )


def _ids() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.ones(2, 11, dtype=torch.long)}
