"""What the model of a tokenizer is made of: its tokens, and which of them it needs for which."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from fxprune.errors import VocabularyError

MODELS = ("BPE", "Unigram", "WordPiece")


@dataclass(frozen=True, eq=False)
class Pieces:
    """The tokens of a ``tokenizer.json``.

    Attributes:
        texts: token to its text, ascending; added ones too.
        added: the tokens that were added to the model: special ones, and whole words.
        model: the part of the file that says how words become tokens.
        ranks: of BPE, pairs of texts that are merged, to the order in which that is done.
    """

    texts: dict[int, str]
    added: frozenset[int]
    model: Mapping[str, Any]
    ranks: Mapping[tuple[str, str], int] = field(repr=False)

    @classmethod
    def of(cls, read: Mapping[str, Any]) -> Pieces:
        """Read a ``tokenizer.json``.

        Raises:
            VocabularyError: its model is of another kind than those known here.
        """
        model = read["model"]
        if (kind := model.get("type")) not in MODELS:
            raise VocabularyError(
                f"the tokenizer's model is {kind}, and tokens can go of {', '.join(MODELS)} alone"
            )
        vocabulary = model["vocab"]
        if kind == "Unigram":
            texts = {number: text for number, (text, _) in enumerate(vocabulary)}
        else:
            texts = {number: text for text, number in vocabulary.items()}
        added = {each["id"]: each["content"] for each in read.get("added_tokens") or ()}
        merges = [pair(merge) for merge in model.get("merges") or ()]
        ranks = {both: rank for rank, both in reversed(list(enumerate(merges)))}
        return cls(dict(sorted({**texts, **added}.items())), frozenset(added), model, ranks)

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Text to token."""
        return {text: number for number, text in self.texts.items()}

    @property
    def _continues(self) -> str:
        return self.model.get("continuing_subword_prefix") or ""

    @property
    def _ends(self) -> str:
        return self.model.get("end_of_word_suffix") or ""

    def symbols(self, text: str) -> list[str]:
        """The single characters of a token, as the tokens that they are."""
        begun = not (self._continues and text.startswith(self._continues))
        bare = text if begun else text[len(self._continues) :]
        ended = bool(self._ends) and bare.endswith(self._ends) and len(bare) > len(self._ends)
        bare = bare[: -len(self._ends)] if ended else bare
        found = [
            character if begun and place == 0 else self._continues + character
            for place, character in enumerate(bare)
        ]
        if ended:
            found[-1] += self._ends
        return found

    def staying(self) -> frozenset[int]:
        """The tokens that no text can be written without, and those that text does not become.

        Added ones (special ones among them), the one for what is unknown, bytes and single
        characters; and those with a character that there is no token for by itself.
        """
        known = self.numbers
        unknown = self.model.get("unk_token"), self.model.get("unk_id")
        found = {*self.added, *(known[u] for u in unknown[:1] if u in known)}
        found.update(u for u in unknown[1:] if u is not None)
        for number, text in self.texts.items():
            symbols = self.symbols(text)
            byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            if len(symbols) < 2 or byte or (not self.ranks and self._alone(symbols)):
                found.add(number)
        return frozenset(found)

    def _alone(self, symbols: Iterable[str]) -> bool:
        """Whether there is no other way to write one of the characters."""
        return any(symbol not in self.numbers for symbol in symbols)

    @functools.cached_property
    def _parts(self) -> dict[str, list[tuple[str, str]]]:
        """Of a merged text the pairs that it can be merged from, the first ones first."""
        found: dict[str, list[tuple[str, str]]] = {}
        for left, right in self.ranks:
            found.setdefault(self.merged(left, right), []).append((left, right))
        return found

    def merged(self, left: str, right: str) -> str:
        """What two texts are merged into."""
        prefix = self._continues
        return left + (right[len(prefix) :] if prefix and right.startswith(prefix) else right)

    def needs(self, number: int) -> tuple[int, ...]:
        """The two tokens that a token is merged from, when its text alone is tokenized.

        Empty for what is not merged.
        """
        text = self.texts[number]
        pairs = self._parts.get(text, [])
        if len(pairs) > 1:  # which of them comes about, the order of all merges decides
            pairs = self._last(text)
        return tuple(self.numbers[part] for both in pairs for part in both if part in self.numbers)

    def _last(self, text: str) -> list[tuple[str, str]]:
        """The last merge on the way to a text, by the algorithm of BPE; none if it does not come.

        Merged are the neighbours of the lowest rank, the leftmost first (Sennrich et al. 2016).
        """
        parts = self.symbols(text)
        while len(parts) > 1:
            ranked = [
                (self.ranks.get(both, len(self.ranks)), place)
                for place, both in enumerate(itertools.pairwise(parts))
            ]
            rank, place = min(ranked)
            if rank == len(self.ranks):
                return []
            if len(parts) == 2:
                return [(parts[0], parts[1])]
            parts[place : place + 2] = [self.merged(parts[place], parts[place + 1])]
        return []

    def whole(self, number: int, kept: Set[int] = frozenset()) -> set[int]:
        """A token and all that it is merged from, directly or not, but for those kept already."""
        found: set[int] = set()
        pending = [number]
        while pending:
            each = pending.pop()
            if each not in found and each not in kept:
                found.add(each)
                pending.extend(self.needs(each))
        return found


def pair(merge: Any) -> tuple[str, str]:
    """A merge as the two texts: older files have them as one, with a space."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
