"""Depth criteria side by side on SmolLM2-135M, no retraining.

``python -m benches.depth CALIBRATION EVALUATION ... --out RESULTS.jsonl`` removes 6 and 10 of the
30 blocks by each method and prints a line of JSON each: perplexity at 128 and 1024 tokens, the
units in the order in which they went, seconds of scoring. Greedy removal passes 6 on the way to
10, and its first round is the one-shot scan. Sub-blocks go until as many parameters are gone as in
6 blocks. Lines that are in RESULTS already are not measured again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import fxprune
from benches import tables
from fxprune import Depth
from fxprune.branches import bypass
from fxprune.data import text
from fxprune.hf.open.models import load_model
from fxprune.select.blocks import choose_units

COUNTS = (6, 10)
ONE_SHOT = {
    "magnitude+": fxprune.Magnitude(p=1),
    "taylor+": fxprune.Taylor(),
    "block influence+": fxprune.BlockInfluence(),
}
METHODS = (*ONE_SHOT, "run by angle", "greedy ppl", "greedy sub-blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluations", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--windows", type=int, nargs=2, default=[24, 3])
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load_model("smollm2", dtype=getattr(torch, options.dtype))
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    traced = fxprune.trace(loaded.model)
    texts = {Path(path).stem: text.read(path) for path in options.evaluations}
    most = dict(zip((128, 1024), options.windows, strict=True))
    columns = tables.columns(tokenizer, texts, most)
    before = tables.lines(options.out)
    done = {(line["method"], line["blocks"], line["draw"]) for line in before}
    corpus = text.read(options.calibration)

    def keep(method: str, blocks: int, draw: int | None, removed: Any, **facts: Any) -> None:
        if (method, blocks, draw) in done:
            return
        shorter = bypass(traced, removed)
        measured = tables.measured(shorter.graph_module, columns)
        line = {"method": method, "blocks": blocks, "draw": draw, **facts, **measured}
        tables.keep(options.out, {**line, "removed": list(removed)})

    keep("dense", 0, None, ())
    for method in options.methods or METHODS:
        for draw in [None] if method == "magnitude+" else options.draws:
            if all((method, blocks, draw) in done for blocks in counts(method)):
                continue
            crops = None if draw is None else text.crops(tokenizer, corpus, 10, 128, draw)
            start = time.perf_counter()
            chosen = list(choices(traced, method, crops))
            spent = round(time.perf_counter() - start, 1)
            for name, blocks, removed in chosen:
                keep(name, blocks, draw, removed, seconds=spent)


def counts(method: str) -> tuple[int, ...]:
    """How many blocks go, or as many parameters as they have."""
    return COUNTS[:1] if method == "greedy sub-blocks" else COUNTS


def choices(
    traced: fxprune.Traced, method: str, crops: Any
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """What goes, for each count of blocks."""
    if method == "run by angle":
        for blocks in COUNTS:
            depth = Depth(remove=blocks, schedule="run", keep_first=0, keep_last=0)
            angle = fxprune.AngularDistance()
            yield method, blocks, fxprune.choose_depth(traced, depth, angle, crops).removed
        return
    if method == "greedy sub-blocks":
        # A little less than the blocks have, for what is lost in rounding.
        ratio = COUNTS[0] * share_of_a_block(traced) - 1e-9
        depth = Depth(ratio=ratio, unit="branch", schedule="greedy")
        yield method, COUNTS[0], fxprune.choose_depth(traced, depth, fxprune.PPL(), crops).removed
        return
    greedy = method == "greedy ppl"
    depth = Depth(remove=max(COUNTS), schedule="greedy" if greedy else "one-shot")
    found = fxprune.choose_depth(traced, depth, ONE_SHOT.get(method), crops)
    for blocks in COUNTS:
        yield method, blocks, found.removed[:blocks]
    if greedy:
        for blocks in COUNTS:
            yield "ppl", blocks, choose_units(traced, found.scores, Depth(remove=blocks))


def share_of_a_block(traced: fxprune.Traced) -> float:
    """The fraction of the model's parameters in one block."""
    plan = fxprune.Plan.of(
        fxprune.discover(bypass(traced, [fxprune.find_branches(traced).of("block")[0].name])), {}
    )
    return 1 - plan.parameters_after / plan.parameters_before


if __name__ == "__main__":
    main()
