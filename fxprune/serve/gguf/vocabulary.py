"""The tokenizer of a model as metadata of GGUF, where llama.cpp makes the same tokens of a text."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
from gguf import GGUFValueType as Type

from fxprune.errors import ServeError
from fxprune.serve.engine import Pruned
from fxprune.serve.gguf import pieces
from fxprune.serve.gguf.file import Entry, Metadata

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is split before merges -> what llama.cpp calls that.
_SPLITTERS: dict[tuple[tuple[str, Any], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", f"{_LETTERS}\\p{{N}}{{1,3}}{_REST}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", f"{_LETTERS}\\p{{N}}{_REST}"), ("ByteLevel", False)): "qwen2",
}


def of(pruned: Pruned) -> Metadata:
    """The tokenizer, for a file that is made without one of the dense model.

    Args:
        pruned: the model with its tokenizer.

    Raises:
        ServeError: there is none, or llama.cpp may split text in another way. Says how to get a
            file of the dense model.
    """
    tokenizer: Any = pruned.tokenizer
    if tokenizer is None:
        raise ServeError(f"the model has no tokenizer, which a GGUF holds; {_ADVICE}")
    size = pruned.config.vocab_size
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found, merges = _read(tokenizer, Path(folder), size)
        special = gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size)
    name = getattr(pruned.config, "name_or_path", "") or pruned.config.model_type
    found |= {"general.type": _text("model"), "general.name": _text(Path(name).name)}
    writer = gguf.GGUFWriter(None, "")
    special.add_to_gguf(writer, quiet=True)
    own = {
        key: Entry(each.value, each.type, each.sub_type) for key, each in writer.kv_data[0].items()
    }
    found |= {key: each for key, each in own.items() if key.startswith("tokenizer.")}
    ids = tokenizer("a").input_ids  # for what no file says, engines have a guess
    for which, there in (("bos", ids[:1]), ("eos", ids[-1:])):
        added = there == [getattr(tokenizer, f"{which}_token_id")]
        found.setdefault(f"tokenizer.ggml.add_{which}_token", Entry(added, Type.BOOL))
    return found


def _read(tokenizer: Any, folder: Path, size: int) -> tuple[Metadata, bool]:
    """The tokens of a saved tokenizer, and whether its merges are written too.

    Raises:
        ServeError: llama.cpp may split text in another way.
    """
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            read = json.loads(file.read_text(encoding="utf-8"))
            if pieces.are_in(read):
                return pieces.of_merges(read, size), False
        elif (folder / "tokenizer.model").is_file():
            return pieces.of_model(folder, size), False
        else:
            raise ServeError(f"{type(tokenizer).__name__} has no tokenizer.json")
        splitter, (tokens, kinds) = _splitter(read), _tokens(read, size)
    except ServeError as error:
        raise ServeError(f"{error}; {_ADVICE}") from error
    return {
        "tokenizer.ggml.model": _text("gpt2"),
        "tokenizer.ggml.pre": _text(splitter),
        "tokenizer.ggml.tokens": Entry(tokens, Type.ARRAY, Type.STRING),
        "tokenizer.ggml.token_type": Entry(kinds, Type.ARRAY, Type.INT32),
    }, True


_ADVICE = (
    "make a GGUF of the dense model with llama.cpp's convert_hf_to_gguf.py MODEL --outfile "
    "dense.gguf, and give it: --like dense.gguf"
)


def _splitter(read: dict[str, Any]) -> str:
    """What llama.cpp calls the rule by which a tokenizer splits text.

    Raises:
        ServeError: it is not one of those that are known here.
    """
    model, normalizer = read["model"], read.get("normalizer")
    rule = read.get("pre_tokenizer") or {}
    parts = rule.get("pretokenizers", [rule])
    words = []
    for part in parts:
        kind = part.get("type")
        option = {"ByteLevel": "use_regex", "Digits": "individual_digits"}.get(kind)
        value = part.get(option) if option else (part.get("pattern") or {}).get("Regex")
        plain = not part.get("add_prefix_space") and not part.get("invert")
        words.append((kind, value if plain else None))
    found = _SPLITTERS.get(tuple(words))
    normal = normalizer is None or (normalizer["type"] == "NFC" and found == "qwen2")
    known = model["type"] == "BPE" and model["merges"] and not model.get("byte_fallback")
    if not (known and found and normal):
        raise ServeError("it cannot be told how llama.cpp is to split text as this tokenizer does")
    if model.get("ignore_merges", False) != (found == "llama-bpe"):
        raise ServeError(f"the tokenizer's ignore_merges is not that of {found}")
    return found


def _tokens(read: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text of every number below ``size``, and its kind."""
    texts = {number: text for text, number in read["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in read.get("added_tokens", ()):
        texts[added["id"]] = added["content"]
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        kinds[added["id"]] = special
    missing = gguf.TokenType.UNUSED
    return (
        [texts.get(number, f"[PAD{number}]") for number in range(size)],
        [int(kinds.get(number, missing)) for number in range(size)],
    )


def _text(value: str) -> Entry:
    return Entry(value, Type.STRING)
