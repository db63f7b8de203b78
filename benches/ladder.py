"""What options are predicted to cost beside what they cost: within kinds of groups and across them.

``python -m benches.ladder CALIBRATION EVALUATION --out FOLDER`` scores MLP units, key/value heads
and query heads of every third layer of SmolLM2-135M by ``obs``, measures options of each on crops
of the calibration text that nothing was fitted to, and again on the evaluation text. The rank
correlation is that of the latter with the scores, and with the scores brought to the former.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
from scipy.stats import spearmanr

import fxprune
from fxprune.criteria import OBS
from fxprune.data import text
from fxprune.data.draw import mixed_crops
from fxprune.files import write_text
from fxprune.hf.open.models import load_model
from fxprune.stream.options import measure_ladder

KINDS = ("mlp", "attention", "query")
EVERY = 3  # layers
SEED = 0


def rows(calibration: text.Text, evaluation: text.Text) -> list[tuple[str, float, float, float]]:
    """Of each option its kind, and its predicted, scaled and measured cost in nats per token."""
    loaded = load_model("smollm2", dtype=torch.float32)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    assert tokenizer is not None
    graph = fxprune.discover(fxprune.trace(model))
    groups = [
        group
        for group in graph.groups
        if group.kind in KINDS and group.layer is not None and group.layer[-1] % EVERY == 1
    ]
    data = mixed_crops(tokenizer, calibration, 128, (128, 1024), SEED)
    scores = fxprune.estimate(
        model, graph, OBS(), data, groups=groups, batch_size=8, progress=sys.stderr.isatty()
    )

    def crops(source: text.Text, seed: int) -> list[torch.Tensor]:
        return [
            text.crops(tokenizer, source, 8, 128, seed),
            text.crops(tokenizer, source, 1, 1024, seed + 1),
        ]

    first, second = (
        measure_ladder(graph, scores, data[::2], crops(source, seed), progress=sys.stderr.isatty())
        for source, seed in ((calibration, 5000), (evaluation, 0))
    )
    scaled = first.scores(graph, scores)
    return [
        (
            graph[name].kind,
            rung.predicted,
            float(scaled[name].double().sort()[0][: rung.removed].sum()),
            rung.measured,
        )
        for name, rungs in second.rungs.items()
        for rung in rungs
    ]


def table(found: list[tuple[str, float, float, float]]) -> str:
    """Rank correlations and the middle factor between predicted and measured, as Markdown."""
    lines = [
        "| options | number | predicted | brought to measurements | measured / predicted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind in (*KINDS, "all"):
        chosen = [row for row in found if kind in (row[0], "all")]
        _, predicted, scaled, measured = zip(*chosen, strict=True)
        before, after = (spearmanr(each, measured).statistic for each in (predicted, scaled))
        ratio = statistics.median(m / p for m, p in zip(measured, predicted, strict=True))
        lines.append(f"| {kind} | {len(chosen)} | {before:.2f} | {after:.2f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def plot(found: list[tuple[str, float, float, float]], path: Path) -> None:
    """Predicted and scaled costs against measured ones, logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for place, title in ((1, "predicted by obs"), (2, "brought to measurements")):
        axes = figure.add_subplot(1, 2, place)
        for kind, mark in zip(KINDS, "osx", strict=True):
            chosen = [row for row in found if row[0] == kind and min(row[1:]) > 0]
            x, y = [row[place] for row in chosen], [row[3] for row in chosen]
            axes.scatter(x, y, marker=mark, s=18, label=kind)
        values = [value for row in found for value in row[1:] if value > 0]
        ends = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
        axes.plot(ends, ends, color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel=f"cost {title}, nats per token")
        axes.set_ylabel("measured on other text, nats per token")
        axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.ladder", description=__doc__)
    parser.add_argument("calibration")
    parser.add_argument("evaluation")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = rows(text.read(options.calibration), text.read(options.evaluation))
    write_text(options.out / "ladder.md", table(found))
    plot(found, options.out / "ladder.svg")
    print(table(found))


if __name__ == "__main__":
    main()
