"""Which tokens stay: those that text is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from fxprune.data.chat import tokens
from fxprune.errors import VocabularyError
from fxprune.hf.vocabulary.pieces import Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def counted(tokenizer: PreTrainedTokenizerBase, records: Iterable[str]) -> Counter[int]:
    """How often each token occurs in text.

    Raises:
        VocabularyError: there is no text.
    """
    found: Counter[int] = Counter()
    for record in records:
        if record.strip():
            found.update(tokens(tokenizer, record).tolist())
    if not found:
        raise VocabularyError("the text that tokens are chosen by is empty: give text with words")
    return found


def choose(
    pieces: Pieces, counts: Counter[int], size: int, stay: Collection[int] = ()
) -> tuple[int, ...]:
    """The tokens that stay, ascending.

    Added tokens, bytes and single characters always do. The others follow by how often they occur,
    of equal ones those with the lower numbers, which are the more frequent in general; each along
    with all tokens that it is merged from, or not at all if there is no room for them.

    Args:
        pieces: of the tokenizer.
        counts: how often each token occurs.
        size: how many are to stay.
        stay: further tokens that do, such as a config names.

    Raises:
        VocabularyError: there are not so many tokens, or more that must stay; says how many.
    """
    if size > len(pieces.texts):
        raise VocabularyError(
            f"vocabulary={size}: the tokenizer has {len(pieces.texts)} tokens, no more"
        )
    kept: set[int] = set()
    for number in {*pieces.staying(), *stay}:
        kept |= pieces.whole(number, kept)
    if len(kept) > size:
        raise VocabularyError(
            f"vocabulary={size}: {len(kept)} tokens must stay (special and added ones, bytes, "
            "single characters, those that configs name, and what they are merged from)"
        )
    order = sorted(pieces.texts.keys() - kept, key=lambda number: (-counts[number], number))
    while len(kept) < size:
        later = []
        for number in order:
            if number not in kept and len(kept) < size:
                more = pieces.whole(number, kept)
                if len(kept) + len(more) <= size:
                    kept |= more
                else:
                    later.append(number)
        # There was no room for the longest; there is for one that is merged from what stays.
        order = later
    return tuple(sorted(kept))
