"""The page of ``fxprune eval``: models side by side, as pictures and as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from fxprune.files import write_text
from fxprune.inspect.page.bars import Figure, models
from fxprune.inspect.page.elements import Element, document, element, table
from fxprune.inspect.page.sections import section
from fxprune.inspect.page.style import STYLE
from fxprune.measure.evaluation import Evaluation
from fxprune.measure.output import Section


def write(
    found: Sequence[Evaluation], heads: Sequence[str], tables: Sequence[Section], path: Path
) -> None:
    """Write what was measured as one HTML file, which asks for no other file and runs no script.

    Args:
        found: of each model.
        heads: a line about each.
        tables: the tables.
        path: the file; replaced as a whole or not at all.
    """
    title = ", ".join(each.model["name"] for each in found)
    top = element("header", element("h1", title), *(element("p", head) for head in heads))
    pictures = [element("figure", picture) for picture in _pictures(found)]
    parts = [section("Side by side", [element("div", *pictures, class_="pairs")])]
    for each in tables:
        columns = [f"{head} " if n >= each.words else head for n, head in enumerate(each.header)]
        inside = [table(None, columns, each.rows)]
        parts.append(section(each.title, inside + [element("p", each.note)] * bool(each.note)))
    write_text(path, document(f"{title} - fxprune", STYLE, top, element("main", *parts)))


def _pictures(found: Sequence[Evaluation]) -> Iterator[Element]:
    """A picture for each figure; bars of a standard error to both sides where it is known."""
    figures: dict[str, list[Figure]] = {}

    def add(what: str, name: str, value: float, said: str, stderr: float | None = None) -> None:
        if math.isfinite(value):
            figures.setdefault(what, []).append(Figure(name, value, said, stderr))

    for each in found:
        name = each.model["name"]
        add("parameters", name, each.parameters, f"{each.parameters:,}")
        for s in each.speeds:
            size = f"{s.batch} x {s.prompt}" + (f" + {s.new}" if s.new else "")
            rate = s.tokens_per_second
            add(f"{s.kind}, {size}: tokens/s", name, rate, f"{rate:.1f}")
        for p in each.perplexities:
            score = p.score
            what = f"perplexity, {p.text} @ {p.length}"
            add(what, name, score.perplexity, f"{score.perplexity:.3f}", score.stderr)
        for c in each.continuations:
            mean = statistics.fmean(c.repeated)
            add(f"repeated 4-grams, {c.text}", name, mean, f"{mean:.3f}")
        for t in each.tasks:
            add(f"{t.task}, {t.metric}", name, t.value, f"{t.value:.4f}", t.stderr)
    for what, those in figures.items():
        yield models(what, those)
