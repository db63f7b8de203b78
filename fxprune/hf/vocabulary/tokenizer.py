"""A tokenizer with fewer tokens, and new numbers for those that stay."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fxprune.errors import VocabularyError
from fxprune.hf.open.quiet import quiet
from fxprune.hf.vocabulary.pieces import Pieces, pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
# What older versions of transformers keep the same tokens in.
OTHERS = (
    "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def read(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """The ``tokenizer.json`` of a tokenizer.

    Raises:
        VocabularyError: it has none; says why.
    """
    if tokenizer is None:
        raise VocabularyError("vocabulary=: the model has no tokenizer, whose tokens these are")
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        raise VocabularyError(
            f"vocabulary=: {type(tokenizer).__name__} has no {FILE}, in which tokens can go: it is "
            "a SentencePiece model or code of its own. Convert it first, if transformers can: "
            "AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL), with its protobuf and "
            "sentencepiece installed"
        )
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def trimmed(
    tokenizer: PreTrainedTokenizerBase, kept: Sequence[int], original: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens that stay.

    Merges of what is gone go too. Added tokens, the post-processor, padding and the template of
    chats are those of the original, by the new numbers.

    Args:
        tokenizer: the original.
        kept: the tokens that stay, ascending: token ``kept[n]`` gets the number ``n``.
        original: what :func:`read` gave of it.

    Raises:
        VocabularyError: the result has not these tokens.
    """
    numbers = {old: new for new, old in enumerate(kept)}
    changed = rewritten(original, numbers)
    with TemporaryDirectory() as place, quiet():
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for name in OTHERS:
            (folder / name).unlink(missing_ok=True)
        (folder / FILE).write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(numbers[int(old)]): each for old, each in config["added_tokens_decoder"].items()
            }
        (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        made: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    _check(tokenizer, made, kept)
    return made


def _check(
    tokenizer: PreTrainedTokenizerBase, made: PreTrainedTokenizerBase, kept: Sequence[int]
) -> None:
    """See that every token that stays is there by its new number, and no other.

    Raises:
        VocabularyError: they are not.
    """
    before = tokenizer.convert_ids_to_tokens(list(kept))
    after = made.convert_ids_to_tokens(list(range(len(kept))))
    wrong = [new for new, both in enumerate(zip(before, after, strict=True)) if both[0] != both[1]]
    if wrong or len(made) != len(kept):
        place = wrong[0] if wrong else len(kept)
        raise VocabularyError(
            f"{type(tokenizer).__name__} does not open with fewer tokens: token {place} "
            f"is {made.convert_ids_to_tokens(place)!r}, and {len(made)} are there instead of "
            f"{len(kept)}. Please report the model"
        )


def rewritten(read: Mapping[str, Any], numbers: Mapping[int, int]) -> dict[str, Any]:
    """A ``tokenizer.json`` of the tokens that stay.

    Args:
        read: the original.
        numbers: new numbers by the old ones, of the tokens that stay.
    """
    made = {**read, "model": _model(read["model"], numbers, Pieces.of(read))}
    added = [each for each in read.get("added_tokens") or () if each["id"] in numbers]
    made["added_tokens"] = [{**each, "id": numbers[each["id"]]} for each in added]
    made["post_processor"] = _processor(read.get("post_processor"), numbers)
    if read.get("padding"):
        padding = read["padding"]
        made["padding"] = {**padding, "pad_id": numbers.get(padding["pad_id"], 0)}
    return made


def _model(model: Mapping[str, Any], numbers: Mapping[int, int], pieces: Pieces) -> dict[str, Any]:
    if model["type"] == "Unigram":
        vocabulary = [entry for old, entry in enumerate(model["vocab"]) if old in numbers]
        unknown = model.get("unk_id")
        new = None if unknown is None else numbers[unknown]
        return {**model, "vocab": vocabulary, "unk_id": new}
    left = {text: numbers[old] for text, old in model["vocab"].items() if old in numbers}
    made = {**model, "vocab": left}
    if "merges" in model:
        made["merges"] = [
            merge
            for merge in model["merges"]
            if {*pair(merge), pieces.merged(*pair(merge))} <= left.keys()
        ]
    return made


def referred(tokenizer: PreTrainedTokenizerBase, read: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that a tokenizer names: special ones, and those that its post-processor adds."""
    found: set[int] = set(tokenizer.all_special_ids)

    def look(value: Any) -> None:
        if isinstance(value, list | dict):
            for each in value.values() if isinstance(value, dict) else value:
                look(each)
        if isinstance(value, dict):
            found.update(value["ids"] if isinstance(value.get("ids"), list) else ())
            pairs = [value[name] for name in ("sep", "cls") if isinstance(value.get(name), list)]
            found.update(number for _, number in pairs)

    look(read.get("post_processor"))
    return frozenset(found)


def _processor(value: Any, numbers: Mapping[int, int]) -> Any:
    """A post-processor, in whose parts tokens stand as ``[text, number]`` or in ``ids``."""
    if isinstance(value, list):
        return [_processor(each, numbers) for each in value]
    if not isinstance(value, dict):
        return value
    made = {name: _processor(each, numbers) for name, each in value.items()}
    for name in ("sep", "cls"):
        if isinstance(value.get(name), list) and len(value[name]) == 2:
            made[name] = [value[name][0], numbers[value[name][1]]]
    if isinstance(value.get("ids"), list):
        made["ids"] = [numbers[old] for old in value["ids"]]
    return made
