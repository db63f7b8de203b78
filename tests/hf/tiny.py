"""A tiny language model with a byte tokenizer, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.zoo import disturb

PARAMETERS = 15_504  # 257 * 24 + 2 * (3 * 24 * 24 + 3 * 24 * 40 + 2 * 24) + 24
VOCABULARY = 257  # 256 bytes and an end of text


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def config(**changes: object) -> LlamaConfig:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    return LlamaConfig(**{**options, **changes})


def llama(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config(**changes)).eval()


def experts(kind: str) -> Any:
    """A mixture of experts, whose checkpoint has them one by one: ``Mixtral``, ``Qwen2Moe``, ..."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
        "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**sizes)
    )
    disturb(model)
    return model.eval()


def folder(path: Path, with_tokenizer: bool = True) -> Path:
    """A folder as save_pretrained writes it."""
    llama().save_pretrained(path)
    if with_tokenizer:
        tokenizer().save_pretrained(path)
    return path
