"""A small random Llama with grouped queries, for tests that need one real model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(**options: Any) -> LlamaForCausalLM:
    """Two layers, 6 query and 3 key/value heads of size 6, hidden 36, 40 MLP units, vocabulary 90.

    Norm weights are moved away from 1, where the oracle would see too little.
    """
    torch.manual_seed(0)
    config = {
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "vocab_size": 90,
        **options,
    }
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and not parameter.is_meta:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model
