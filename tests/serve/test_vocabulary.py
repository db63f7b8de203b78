"""Tokenizers as metadata of GGUF: llama.cpp makes the tokens that transformers makes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fxprune.data.text import Text
from fxprune.errors import ServeError
from fxprune.hf.vocabulary.trim import trim
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.gguf import vocabulary
from tests.hf.vocabulary.kinds import KINDS, prose
from tests.serve.llama import compare, server
from tests.serve.models import tokenizer as split_as_gpt2

TEXTS = [
    "The capital of France is Paris, and that is that.",
    " a space before, and  two   or more within ",
    "na\u00efve caf\u00e9s \u2615 \u65e5\u672c\u8a9e \U0001f600",
    "lines\nand\ttabs\n\n\n and 12345.67",
    "aaaaaaa theretherethere <s> x",
    "\u2581a",
]
WORDS = "the capital of france is paris and that other there then they are or more and more spaces"
SIZE = 420


def rules(kind: str) -> tuple[Any, Any]:
    """How text is normalized and split."""
    spaces = normalizers.Replace(" ", "\u2581")
    if kind == "llama":
        return normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]), None
    if kind == "metaspace":
        return None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return spaces, pre_tokenizers.Split(" ", "merged_with_previous")  # as Gemma


def pieces(kind: str, lost: int = 0) -> PreTrainedTokenizerFast:
    """Learned of a few words, with a token for each byte, as Llama 2's and Gemma's are."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        [WORDS] * 9, trainers.BpeTrainer(vocab_size=90, show_progress=False)
    )
    found = sorted(learned.get_vocab(), key=lambda text: learned.get_vocab()[text])
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *found]
    numbers = {text: number for number, text in enumerate(texts)}
    merges = [
        (text[:cut], text[cut:])
        for text in found
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    ]
    made = Tokenizer(
        models.BPE(
            numbers,
            merges[: len(merges) - lost],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer, made.pre_tokenizer = rules(kind)
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def written(tokenizer: Any, file: Path) -> Path:
    """A GGUF file of a model with a tokenizer."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=SIZE, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    engine("llama.cpp").write(Pruned(LlamaForCausalLM(config), config, None, tokenizer), file)
    return file


def tokens(file: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp makes of texts."""
    running, found = server(file), []
    for text in texts:
        asked = {"content": text, "add_special": True, "parse_special": True}
        request = urllib.request.Request(
            f"{running.listening_address}/tokenize",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            found.append(json.load(answer)["tokens"])
    return found


@pytest.mark.serve
@pytest.mark.parametrize("kind", ["llama", "metaspace", "gemma", "gpt2"])
def test_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = split_as_gpt2() if kind == "gpt2" else pieces(kind)
    texts = TEXTS
    if kind == "metaspace":  # llama.cpp puts a space before text that has one, and behind <s>
        texts = [text for text in TEXTS if text.strip(" \u2581") == text and "<s>" not in text]
    if kind == "gpt2":  # the others are not made of its letters
        texts = TEXTS[:2]
    found = tokens(written(tokenizer, tmp_path / "m.gguf"), texts)
    for text, ids in zip(texts, found, strict=True):
        assert ids == tokenizer(text).input_ids, text


def refused(tokenizer: Any, words: str) -> None:
    config = LlamaConfig(vocab_size=SIZE)
    with pytest.raises(ServeError, match=f"{words}.*--like dense.gguf"):
        vocabulary.of(Pruned(torch.nn.Linear(1, 1), config, None, tokenizer))


def test_what_is_refused() -> None:
    refused(pieces("llama", lost=1), "the tokenizer never makes '.*' of '.*' and '.*'")
    other = pieces("llama")
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    refused(other, "normalizer Lowercase is none of llama.cpp's")
    other.backend_tokenizer.normalizer = None
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Digits()
    refused(other, "splits text by Digits")
    refused(None, "no tokenizer")


def fewer(kind: str, size: int) -> tuple[Any, LlamaForCausalLM]:
    """A tokenizer that lost tokens, and the model that lost them too."""
    tokenizer = pieces("gemma") if kind == "pieces" else KINDS[kind]()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    cut = trim(model, tokenizer, Text("words", (WORDS, *prose()[1])), size, verify=False)
    return cut.tokenizer, cut.model  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "size"), [("pieces", 300), ("llama3", 500)])
def test_tokens_that_went_are_not_written(kind: str, size: int) -> None:
    tokenizer, model = fewer(kind, size)
    found = vocabulary.of(Pruned(model, model.config, None, tokenizer))
    texts = found["tokenizer.ggml.tokens"].value
    assert len(texts) == size
    assert texts == tokenizer.convert_ids_to_tokens(list(range(size)))
    for name in ("bos", "eos"):
        number = found[f"tokenizer.ggml.{name}_token_id"].value
        assert number == getattr(tokenizer, f"{name}_token_id") < size


@pytest.mark.serve
@pytest.mark.parametrize(("kind", "size"), [("pieces", 300), ("llama3", 500)])
def test_fewer_tokens_in_llama_cpp(kind: str, size: int, tmp_path: Path) -> None:
    tokenizer, model = fewer(kind, size)
    file = tmp_path / "m.gguf"
    engine("llama.cpp").write(Pruned(model, model.config, None, tokenizer), file)
    texts = [text for text in (*TEXTS, WORDS) if kind == "pieces" or "<s>" not in text]
    for text, ids in zip(texts, tokens(file, texts), strict=True):
        assert ids == tokenizer(text).input_ids, text
    assert compare(model, file, tokenizer(WORDS[:40]).input_ids, count=4) < 5e-3
