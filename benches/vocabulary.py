"""SmolLM2-135M with fewer tokens: parameters, tokens per word, perplexity per word, exact logits.

``python -m benches.vocabulary CHOSEN EVALUATION ... --sizes 16000`` picks tokens by the first 48
records of CHOSEN; the others, and the beginning of each other text, are measured, dense and without
the other tokens. All tokens of the same words count, in windows of 512. Then logits of sentences
that both tokenizers split alike are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fxprune.data.text import Text, joined, per_word, read
from fxprune.hf.open.models import load_model
from fxprune.hf.vocabulary.trim import Trimmed, trim
from fxprune.measure.perplexity import perplexity, windows

RECORDS, LENGTH, BATCH = 48, 512, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chosen")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16000])
    parser.add_argument("--words", type=int, default=20000, help="of each text")
    parser.add_argument("--sentences", type=int, default=1000)
    options = parser.parse_args()
    loaded = load_model("smollm2")
    model: Any = loaded.model
    given = read(options.chosen)
    chosen = Text(given.name, given.records[:RECORDS])
    others = [Text(f"{given.name}, the others", given.records[RECORDS:])]
    others += [read(path) for path in options.evaluations]
    texts = [_first(text, options.words) for text in others]
    for size in (None, *options.sizes):
        cut = None if size is None else trim(model, loaded.tokenizer, chosen, size)
        small, tokenizer = (model, loaded.tokenizer) if cut is None else (cut.model, cut.tokenizer)
        assert tokenizer is not None
        line: dict[str, Any] = {
            "tokens": len(tokenizer),
            "parameters": sum(p.numel() for p in small.parameters()),
            "chosen, tokens per word": per_word(tokenizer, chosen),
        }
        for text in texts:
            start, rate = time.perf_counter(), per_word(tokenizer, text)
            every = windows(joined(tokenizer, text), LENGTH, stride=LENGTH)
            found = perplexity(small, every)
            line[text.name] = {
                "tokens per word": rate,
                "perplexity per word": found.perplexity**rate,
                "perplexity per token": found.perplexity,
                "seconds": time.perf_counter() - start,
            }
        if cut is not None and options.sentences:
            line |= _exact(model, cut, others, options.sentences)
        print(json.dumps(line), flush=True)


def _first(text: Text, words: int) -> Text:
    """The first records, and a part of the next one, of so many words."""
    records: list[str] = []
    for record in text.records:
        there = record.split(" ")[:words]
        words -= len(there)
        if there:
            records.append(" ".join(there))
    return Text(Path(text.name).name, tuple(records))


@torch.no_grad()
def _exact(model: Any, cut: Trimmed, texts: list[Text], count: int) -> dict[str, Any]:
    """Of so many sentences that both split alike, how many have bit-equal logits."""
    kept = torch.tensor(cut.plan.tokens)
    lengths: dict[int, list[list[int]]] = {}
    for old in _alike(cut, texts, count):
        lengths.setdefault(len(old), []).append(old)
    equal, worst = 0, 0.0
    for alike in lengths.values():
        for start in range(0, len(alike), BATCH):
            old_ids = torch.tensor(alike[start : start + BATCH])
            expected = model(input_ids=old_ids).logits[..., kept]
            found = cut.model(input_ids=torch.searchsorted(kept, old_ids)).logits
            equal += int((expected == found).flatten(1).all(1).sum())
            worst = max(worst, float((expected - found).abs().max()))
    seen = sum(map(len, lengths.values()))
    return {"sentences": seen, "bit-equal": equal, "largest difference": worst}


def _alike(cut: Trimmed, texts: list[Text], count: int) -> Iterator[list[int]]:
    """The tokens of different sentences that both tokenizers split alike."""
    sentences = dict.fromkeys(
        sentence.strip()
        for text in texts
        for record in text.records
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", record)
        if len(sentence.split()) > 3
    )
    for sentence in sentences:
        old, new = cut.before(sentence).input_ids, cut.tokenizer(sentence).input_ids
        both = (cut.before, old), (cut.tokenizer, new)
        first, second = (t.convert_ids_to_tokens(ids) for t, ids in both)
        if first == second and count:
            count -= 1
            yield old


if __name__ == "__main__":
    main()
