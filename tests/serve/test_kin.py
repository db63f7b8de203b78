"""What makes a model another than Llama."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from fxprune.serve.kin import unlike_llama

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(),
        LlamaConfig(hidden_act="swish"),
        LlamaConfig(rope_parameters={**PARTIAL, "partial_rotary_factor": 1.0}),
        MistralConfig(sliding_window=None),
        MistralConfig(sliding_window=4096, max_position_embeddings=4096),
        Qwen2Config(),
        Qwen2Config(sliding_window=128, use_sliding_window=False),
    ],
)
def test_kin(config: Any) -> None:
    assert not unlike_llama(config)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2Config(), "gpt2 is none of llama, "),
        (GraniteConfig(), "granite is none of"),  # its residuals are scaled
        (Qwen3Config(), "qwen3 is none of"),  # norms of queries and keys
        (SmolLM3Config(), "smollm3 is none of"),  # layers without rotary embedding
        (LlamaConfig(hidden_act="gelu"), "its MLPs have the activation gelu"),
        (LlamaConfig(rope_parameters=YARN), "its rotary embedding is yarn"),
        (LlamaConfig(rope_parameters=PARTIAL), "turns a part of each head, 0.5"),
        (MistralConfig(), "a sliding window of 4096, less than 131072"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=128, max_window_layers=3),
            "a sliding window of 128, less than 32768",
        ),
    ],
)
def test_other_models(config: Any, why: str) -> None:
    assert why in unlike_llama(config)
