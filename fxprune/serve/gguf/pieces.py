"""Tokenizers of pieces, as SentencePiece makes them for Llama 2 and Gemma, as metadata of GGUF.

Their merges are by the score of the piece that is made, and llama.cpp finds them so: any two
neighbours that are a piece together, the best piece first. A ``tokenizer.json`` lists merges
instead, and scores are given such that both are the same, or it is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFValueType as Type
from gguf import TokenType

from fxprune.errors import ServeError
from fxprune.serve.gguf.file import Entry, Metadata

_SPACE = "\u2581"
_BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
_LEAST = -1e6  # the score of what is never made of two pieces

Token = tuple[str, float, TokenType]


def are_in(read: Mapping[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is of this kind."""
    return read["model"]["type"] == "BPE" and bool(read["model"].get("byte_fallback"))


def of_merges(read: Mapping[str, Any], size: int) -> Metadata:
    """The tokenizer of a ``tokenizer.json``.

    Args:
        read: what is in the file.
        size: tokens of the model.

    Raises:
        ServeError: llama.cpp would make other tokens of some text. Says why.
    """
    model, prefix = read["model"], _prefix(read)
    vocabulary: dict[str, int] = model["vocab"]
    if missing := [each for each in _BYTES if each not in vocabulary]:
        raise ServeError(f"llama.cpp wants a token for each byte, and there is no {missing[0]}")
    merges = [_pair(each) for each in model["merges"]]
    ranks = _ranks(merges)
    added = {each["content"] for each in read.get("added_tokens", ())}
    _check_made(vocabulary, {*merges}, added | {*_BYTES})
    tokens: dict[int, Token] = {}
    for text, number in vocabulary.items():
        kind = TokenType.BYTE if text in _BYTES else TokenType.NORMAL
        tokens[number] = (text, -float(ranks[text]) if text in ranks else _LEAST, kind)
    for each in read.get("added_tokens", ()):
        kind = TokenType.CONTROL if each["special"] else TokenType.USER_DEFINED
        text = each["content"] if each["special"] else each["content"].replace(_SPACE, " ")
        tokens[each["id"]] = (text, _LEAST, kind)
    if (unknown := model.get("unk_token")) in vocabulary:
        tokens[vocabulary[unknown]] = (unknown, 0.0, TokenType.UNKNOWN)
    return _metadata(tokens, size, prefix)


def of_model(folder: Path, size: int) -> Metadata:
    """The tokenizer of a folder with ``tokenizer.model``.

    Args:
        folder: the folder, which has the file.
        size: tokens of the model.

    Raises:
        ServeError: it is damaged, of another kind, or the package that reads it is missing.
    """
    try:
        package: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
        found = package.ModelProto()
        found.ParseFromString((folder / "tokenizer.model").read_bytes())
        tokens = dict(enumerate(_texts(gguf.vocab.SentencePieceVocab(folder))))
    except ImportError as error:
        raise ServeError(
            "tokenizer.model is read by a package: pip install sentencepiece"
        ) from error
    except Exception as error:  # whatever the package raises of a damaged file
        raise ServeError(f"tokenizer.model cannot be read: {error}") from error
    if found.trainer_spec.model_type != found.trainer_spec.BPE:
        raise ServeError("tokenizer.model is not of BPE, and llama.cpp would merge by other rules")
    rules = found.normalizer_spec
    return _metadata(tokens, size, rules.add_dummy_prefix) | {
        "tokenizer.ggml.remove_extra_whitespaces": Entry(
            bool(rules.remove_extra_whitespaces), Type.BOOL
        )
    }


def _texts(vocabulary: Any) -> Iterator[Token]:
    for text, score, kind in vocabulary.all_tokens():
        yield text.decode("utf-8"), score, kind


def _metadata(tokens: Mapping[int, Token], size: int, prefix: bool) -> Metadata:
    rows = [tokens.get(n, (f"[PAD{n}]", _LEAST, TokenType.UNUSED)) for n in range(size)]
    texts, scores, kinds = zip(*rows, strict=True)
    return {
        "tokenizer.ggml.model": Entry("llama", Type.STRING),
        "tokenizer.ggml.pre": Entry("default", Type.STRING),
        "tokenizer.ggml.tokens": Entry([*texts], Type.ARRAY, Type.STRING),
        "tokenizer.ggml.scores": Entry([*scores], Type.ARRAY, Type.FLOAT32),
        "tokenizer.ggml.token_type": Entry([int(kind) for kind in kinds], Type.ARRAY, Type.INT32),
        "tokenizer.ggml.add_space_prefix": Entry(prefix, Type.BOOL),
    }


def _prefix(read: Mapping[str, Any]) -> bool:
    """Whether a space is put before text, as llama.cpp does.

    Raises:
        ServeError: something else is done to text.
    """
    prefix = False
    for step in _steps(read.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": _SPACE}:
            prefix = True
        elif step != {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}:
            raise ServeError(f"the tokenizer's normalizer {step['type']} is none of llama.cpp's")
    inside = any(_SPACE in text[1:] for text in read["model"]["vocab"])
    for step in _steps(read.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("replacement") == _SPACE:
            prefix |= step.get("prepend_scheme", "always") != "never"
            if not step.get("split", True) or not inside:
                continue
        elif step["type"] == "Split" and step.get("pattern") == {"String": " "}:
            continue  # of which there are none left
        raise ServeError(f"the tokenizer splits text by {step['type']}, as llama.cpp does not")
    return prefix


def _steps(rule: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if rule is None:
        return []
    return list(rule[inner]) if rule["type"] == "Sequence" else [rule]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    one, two = merge.split(" ") if isinstance(merge, str) else merge
    return one, two


def _ranks(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Pieces in the order in which they are made.

    Raises:
        ServeError: a piece is made before another in one way, and after it in another way.
    """
    made = [one + two for one, two in merges]
    ranks: dict[str, int] = {}
    for place, text in enumerate(made):
        if ranks.setdefault(text, place) != place and made[place - 1] != text:
            raise ServeError(f"the tokenizer's merges to {text!r} are not in one place")
    return ranks


def _check_made(
    vocabulary: Collection[str], merges: Collection[tuple[str, str]], others: Collection[str]
) -> None:
    """Refuse pieces that neighbours make in llama.cpp and not in the tokenizer.

    Raises:
        ServeError: there are some.
    """
    for text in vocabulary:
        for cut in range(1, len(text)) if text not in others else ():
            pair = (text[:cut], text[cut:])
            if pair not in merges and all(each in vocabulary for each in pair):
                raise ServeError(
                    f"the tokenizer never makes {text!r} of {' and '.join(map(repr, pair))}, and "
                    "llama.cpp would"
                )
