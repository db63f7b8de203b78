"""LLaMA models of published sizes, on ``meta``."""

from __future__ import annotations

import functools

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.groups.dependency import DependencyGraph

CONFIGS: dict[str, dict[str, int]] = {
    "llama7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "llama13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "vocab_size": 32000,
    },
    "llama3_8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tinyllama": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}


@functools.cache
def graph_of(name: str) -> DependencyGraph:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**CONFIGS[name]))
    return fxprune.discover(fxprune.trace(model.eval()))
