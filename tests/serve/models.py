"""Small random models that engines know, and a tokenizer whose every token is printable."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fxprune
from tests.zoo import BY_NAME, Entry, disturb
from tests.zoo import VOCABULARY as WORDS

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


# Wide enough for engines that take multiples, with heads of a size that all of them have.
_WIDE = {
    "hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


def _entry(name: str, kind: str, model: str = "", **options: Any) -> Entry:
    """A decoder of a type, by the class of another where transformers has no class of its own."""

    def make(attention: str) -> Any:
        config = getattr(transformers, f"{kind}Config")(**{**_WIDE, **options})
        config._attn_implementation = attention
        return getattr(transformers, f"{model or kind}ForCausalLM")._from_config(config)

    return Entry(name, make, {})


WIDE = {
    entry.name: entry
    for entry in (
        _entry("wide", "Llama"),
        _entry("wide-tied", "Llama", tie_word_embeddings=True),
        _entry("wide-biases", "Llama", attention_bias=True, mlp_bias=True),
        _entry("wide-one-kv-head", "Llama", num_key_value_heads=1),
        _entry("wide-no-groups", "Llama", num_key_value_heads=4),
        _entry("wide-llama3-rope", "Llama", rope_parameters=LLAMA3),
        _entry("wide-linear-rope", "Llama", rope_parameters=_LINEAR),
        _entry("wide-heads", "Llama", hidden_size=96, head_dim=32),
        _entry("wide-mistral", "Mistral", sliding_window=None),
        _entry("wide-window", "Mistral", sliding_window=8),
        _entry("wide-qwen2", "Qwen2"),
        _entry("wide-seed-oss", "SeedOss", head_dim=32),
        _entry("wide-internlm3", "InternLM3", "Llama", head_dim=32),
    )
}
ENTRIES = {**BY_NAME, **WIDE}
