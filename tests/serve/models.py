"""Small random models that engines know, and a tokenizer whose every token is printable."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fxprune
from tests.zoo import disturb

VOCABULARY = 300
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


@cache
def traced(kind: str, **sizes: int) -> fxprune.Traced:
    """A model of one of :data:`KINDS`, traced; not to be changed."""
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **sizes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    disturb(model)
    return fxprune.trace(model, kwargs={"input_ids": torch.zeros(2, 9, dtype=torch.long)})


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Printable letters and pairs of them, split as GPT-2 splits."""
    singles = [chr(code) for code in range(33, 127)] + ["\u0120", "\u010a"]
    letters = "abcdefghijklmn"
    merges = [(a, b) for a in letters for b in letters]
    words = singles + [a + b for a, b in merges]
    made = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>", bos_token="<b>")
