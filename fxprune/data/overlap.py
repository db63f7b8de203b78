"""The guard against training on the text that evaluates: runs of 13 words that both have.

As in the decontamination of GPT-3 (Brown et al. 2020, appendix C), but a record counts by its share
of common runs, so that one quotation in a long article does not cost the article.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from fxprune.data.records import Record, Records, plain
from fxprune.data.text import Text
from fxprune.errors import RecoveryError

WORDS = 13  # in a shingle
SHARE = 10  # a tenth of the shingles is an overlap
_WORD = re.compile(r"[^\W_]+")


@dataclass
class _Index:
    """The evaluation side. Its records have numbers; equal ones of one text have the same.

    Attributes:
        names: of the evaluation texts.
        text: for each record, the number of its text.
        size: for each record, how many different shingles it has.
        whole: texts that a record equals, by the hash of all its words.
        first: a record that has the shingle.
        others: more records that have it; few shingles have any.
    """

    names: list[str] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    whole: dict[int, list[int]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    others: dict[int, list[int]] = field(default_factory=dict)


def overlap(training: Records, evaluation: Sequence[Text]) -> list[tuple[Record, str, float]]:
    """Training records that share text with what is evaluated.

    Compared are shingles: runs of 13 words, a word being letters and digits in lower case, so that
    the same text in another tokenisation is found too. A record overlaps if at least a tenth of its
    shingles are in an evaluation text, or at least a tenth of those of one evaluation record are in
    it. A record of fewer than 13 words overlaps if all its words are those of an evaluation record.
    So a sentence quoted in a long document, or a short question inside one, is not an overlap.

    Takes time in proportion to the words of both sides, and memory for those of the evaluation.

    Returns:
        Each record that overlaps, in order, with the name of the evaluation text it shares most
        with and the larger of the two shares, from 0.1 to 1.
    """
    index = _index(evaluation)
    found = []
    for record in training.records:
        text, share = _closest(index, plain(record))
        if share * SHARE >= 1:
            found.append((record, index.names[text], share))
    return found


def check(training: Records, evaluation: Sequence[Text]) -> None:
    """Refuse training records that overlap with an evaluation text, see :func:`overlap`.

    Raises:
        RecoveryError: names the texts, how many records, and the first of them.
    """
    found = overlap(training, evaluation)
    if not found:
        return
    counts = Counter(name for _, name, _ in found)
    texts = " and ".join(f"{count} with {name!r}" for name, count in counts.items())
    record, name, share = found[0]
    raise RecoveryError(
        f"{training.name}: {len(found)} of its {len(training.records)} training documents overlap "
        f"with text to evaluate on: {texts}. The first, {record.where}, shares {share:.0%} with "
        f"{name!r} and begins {_beginning(record)!r}. Take them out of one of the two; "
        "--drop-overlap (drop_overlap=True) leaves them out of the training"
    )


def drop(training: Records, evaluation: Sequence[Text]) -> Records:
    """Leave out the records that overlap, see :func:`overlap`; ``skipped`` lists them.

    Raises:
        RecoveryError: nothing is left.
    """
    found = overlap(training, evaluation)
    out = {id(record) for record, _, _ in found}
    kept = tuple(record for record in training.records if id(record) not in out)
    if found and not kept:
        raise RecoveryError(
            f"{training.name}: all {len(found)} training documents overlap with text to evaluate "
            f"on, the first, {found[0][0].where}, with {found[0][1]!r}: give other training data"
        )
    lines = [
        f"{record.where}: overlaps with the evaluation text {name!r} ({share:.0%})"
        for record, name, share in found
    ]
    return Records(training.name, kept, (*training.skipped, *lines))


def _beginning(record: Record) -> str:
    return " ".join(plain(record).split(maxsplit=8)[:8])[:80]


def _index(evaluation: Sequence[Text]) -> _Index:
    index = _Index()
    for number, text in enumerate(evaluation):
        index.names.append(text.name)
        for record in text.records:
            words = _words(record)
            equal = index.whole.setdefault(hash(tuple(words)), [])
            if not words or number in equal:
                continue
            equal.append(number)
            shingles = set(_shingles(words))
            for shingle in shingles:
                if index.first.setdefault(shingle, len(index.text)) != len(index.text):
                    index.others.setdefault(shingle, []).append(len(index.text))
            index.text.append(number)
            index.size.append(len(shingles))
    return index


def _closest(index: _Index, training: str) -> tuple[int, float]:
    """The number of the evaluation text that a training text shares most with, and the share."""
    words = _words(training)
    if len(words) < WORDS:
        equal = index.whole.get(hash(tuple(words)))
        return (equal[0], 1.0) if equal else (0, 0.0)
    places: Counter[int] = Counter()  # by evaluation text, shingles of the training text in it
    common: Counter[int] = Counter()  # by evaluation record, its shingles in the training text
    seen = set()
    for shingle in _shingles(words):
        if shingle not in index.first:
            continue
        records = [index.first[shingle], *index.others.get(shingle, ())]
        places.update({index.text[record] for record in records})
        if shingle not in seen:
            seen.add(shingle)
            common.update(records)
    total = len(words) - WORDS + 1
    shares = [(count / total, text) for text, count in places.items()]
    shares += [(count / index.size[n], index.text[n]) for n, count in common.items()]
    share, text = max(shares, default=(0.0, 0), key=lambda each: (each[0], -each[1]))
    return text, share


def _words(text: str) -> array[int]:
    """Hashes of the words: eight bytes for each, as a document may be a whole file."""
    text = unicodedata.normalize("NFKC", text).lower()
    return array("q", (hash(match[0]) for match in _WORD.finditer(text)))


def _shingles(words: array[int]) -> Iterator[int]:
    return map(hash, zip(*(islice(words, start, None) for start in range(WORDS)), strict=False))
