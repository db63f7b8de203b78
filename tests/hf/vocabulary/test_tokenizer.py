"""Tokenizers of every kind with fewer tokens."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fxprune.errors import VocabularyError
from fxprune.hf.vocabulary import tokenizer as tokenizers
from fxprune.hf.vocabulary.choose import choose, counted
from fxprune.hf.vocabulary.pieces import Pieces
from tests.hf.vocabulary.kinds import KINDS, prose

MORE = 150  # tokens beside those that must stay
# Special tokens around a text and around a pair.
ADDED = {"llama3": (1, 1), "gemma": (1, 0), "gemma_bpe": (1, 0), "bert": (2, 3), "t5": (1, 2)}
ADDED["xlm_r"] = (2, 4)
ODD = (
    "Ünïcode — 你好, façade!",
    "tabs\tand  two spaces\nand a line",
    "x" * 30,
    "0x7f == 127; 3.14159",
)


@functools.cache
def trimmed(kind: str) -> tuple[Any, Any, tuple[int, ...]]:
    """A tokenizer before and after, and the tokens that stay."""
    before = KINDS[kind]()
    read = tokenizers.read(before)
    pieces = Pieces.of(read)
    stay = tokenizers.referred(before, read)
    size = len({*pieces.staying(), *stay}) + MORE
    kept = choose(pieces, counted(before, prose()[0][:120]), size, stay)
    assert len(kept) == size < len(before)
    return before, tokenizers.trimmed(before, kept, read), kept


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_read_and_written_as_before(kind: str) -> None:
    before, after, kept = trimmed(kind)
    assert len(after) == len(kept)
    alike = 0
    for text in (*prose()[0], *prose()[1], *ODD):
        old, new = before(text).input_ids, after(text).input_ids
        assert after.decode(new) == before.decode(old)
        words = before.decode(old, skip_special_tokens=True)
        assert after.decode(new, skip_special_tokens=True) == words
        if set(old) <= set(kept):  # nothing in the way of the very same tokens
            alike += 1
            assert [kept[number] for number in new] == old
        assert len(new) >= len(old)
    assert alike


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_of_tokens_that_stay_is_tokenized_alike(kind: str) -> None:
    before, after, kept = trimmed(kind)
    words = {word for text in prose()[0] for word in text.split()}
    found = [w for w in words if set(before(w).input_ids) <= set(kept)]
    assert len(found) > 100
    for word in found:
        assert [kept[number] for number in after(word).input_ids] == before(word).input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_templates_and_files(kind: str, tmp_path: Path) -> None:
    before, after, _ = trimmed(kind)
    assert after.all_special_tokens == before.all_special_tokens
    added = {str(token) for token in before.added_tokens_decoder.values()}
    assert {str(token) for token in after.added_tokens_decoder.values()} == added
    assert after.chat_template == before.chat_template
    for given in (("one text",), ("one text", "and another")):
        rows = [t.convert_ids_to_tokens(t(*given).input_ids) for t in (before, after)]
        placed = [[token for token in row if token in added] for row in rows]
        assert placed[0] == placed[1]
        assert len(placed[0]) == ADDED.get(kind, (0, 0))[len(given) - 1]
    after.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(prose()[0][0]).input_ids == after(prose()[0][0]).input_ids


def test_a_chat_is_written_in_the_template_as_before() -> None:
    before, after, _ = trimmed("llama3")
    chat = [{"role": "user", "content": "import this"}, {"role": "assistant", "content": "Yes."}]
    texts = [t.apply_chat_template(chat, tokenize=False) for t in (before, after)]
    assert texts[0] == texts[1]
    assert after.convert_tokens_to_ids("<|eot_id|>") == len(after) - 1


@pytest.mark.parametrize("kind", ["gpt2", "gemma_bpe", "llama3"])
def test_a_token_stays_with_what_it_is_merged_from(kind: str) -> None:
    before, after, _ = trimmed(kind)
    read = json.loads(after.backend_tokenizer.to_str())
    merges = {tuple(merge) for merge in read["model"]["merges"]}
    made = {left + right for left, right in merges}
    # Every token that was merged is merged still.
    old = json.loads(before.backend_tokenizer.to_str())
    possible = {"".join(merge) for merge in old["model"]["merges"]}
    own = set(read["model"]["vocab"]) & possible
    assert own
    assert own == made
    # And comes about: by itself, a word becomes one token again.
    model = Tokenizer.from_str(after.backend_tokenizer.to_str()).model
    for text in own:
        assert [token.value for token in model.tokenize(text)] == [text]


def test_characters_without_a_token_of_their_own_keep_those_that_hold_them() -> None:
    vocabulary = {text: n for n, text in enumerate(["[UNK]", "a", "##b", "ab", "az", "##aq", "b"])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces = Pieces.of(json.loads(made.to_str()))
    # Without "az" no word holds a z, and "##aq" is the one way to write a or q inside a word.
    assert {pieces.texts[n] for n in pieces.staying()} == {"[UNK]", "a", "##b", "b", "az", "##aq"}


def test_which_halves_a_token_has_is_for_the_order_of_merges_to_say() -> None:
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]
    texts = ["a", "b", "c", "ab", "bc", "abc"]
    model = models.BPE({text: n for n, text in enumerate(texts)}, merges)
    pieces = Pieces.of(json.loads(Tokenizer(model).to_str()))
    assert pieces.needs(5) == (0, 4)
    assert pieces.whole(5, {0, 1}) == {2, 4, 5}


def test_bad_input() -> None:
    before = KINDS["gpt2"]()
    pieces = Pieces.of(tokenizers.read(before))
    counts = counted(before, ["some text"])
    with pytest.raises(VocabularyError, match=r"vocabulary=9999: the tokenizer has \d+ tokens"):
        choose(pieces, counts, 9999)
    with pytest.raises(VocabularyError, match=r"vocabulary=20: 257 tokens must stay"):
        choose(pieces, counts, 20)
    for nothing in ([], [""], ["  \n "]):
        with pytest.raises(VocabularyError, match="is empty"):
            counted(before, nothing)
    with pytest.raises(VocabularyError, match="has no tokenizer, whose tokens"):
        tokenizers.read(None)
    slow: Any = type("SlowTokenizer", (), {})()
    with pytest.raises(VocabularyError, match=r"SlowTokenizer has no tokenizer.json.*Sentence"):
        tokenizers.read(slow)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(VocabularyError, match=r"WordLevel, and tokens can go of BPE"):
        Pieces.of(tokenizers.read(whole))
