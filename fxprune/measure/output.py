"""What was measured as tables: for the terminal and in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fxprune.measure.continuations import GRAMS
from fxprune.measure.evaluation import Evaluation
from fxprune.measure.report import scaled

if TYPE_CHECKING:
    from rich.console import Console

NONE = "-"
CONTINUED = (
    "greedy; repeated 4-grams: mean share of those that stood in a continuation before; "
    "distinct-n: different n-grams over all n-grams of all continuations"
)


@dataclass(frozen=True)
class Section:
    """A table with a note below it; as many ``words`` columns on the left hold words."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    words: int = 1


def title(found: Evaluation) -> str:
    """The model and what it ran on, in one line."""
    facts = found.model
    libraries = [f"{x} {facts[x]}" for x in ("torch", "transformers", "lm_eval") if x in facts]
    return (
        f"{facts['name']}: {facts['class']}, {facts['dtype']} on {facts['device']}, "
        f"{facts['threads']} threads, {', '.join(libraries)}"
    )


def sections(found: Evaluation) -> list[Section]:
    """All tables; one that would be empty is left out."""
    made = [_costs(found), _speeds(found), _perplexities(found), _continued(found), _tasks(found)]
    return [section for section in made if section.rows]


def markdown(heads: Sequence[str], tables: Sequence[Section]) -> str:
    """Tables in Markdown, below the lines that say what was measured."""
    lines = [line for head in heads for line in (f"# {head}", "")]
    for section in tables:
        right = len(section.header) - section.words
        lines += [
            f"## {section.title}",
            "",
            _line(section.header),
            _line([*["---"] * section.words, *["---:"] * right]),
            *map(_line, section.rows),
            "",
        ]
        lines += [section.note, ""] if section.note else []
    return "\n".join(lines)


def show(heads: Sequence[str], tables: Sequence[Section], console: Console) -> None:
    """Print tables, below the lines that say what was measured."""
    from rich.table import Table
    from rich.text import Text

    for head in heads:
        console.print(head, markup=False, highlight=False, soft_wrap=True)
    for section in tables:
        table = Table(title=section.title, title_justify="left")
        for place, column in enumerate(section.header):
            side: Literal["left", "right"] = "left" if place < section.words else "right"
            table.add_column(column, justify=side, overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        if section.note:
            console.print(section.note, style="dim", markup=False, highlight=False, soft_wrap=True)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _costs(found: Evaluation) -> Section:
    cached = NONE if found.kv_cache is None else f"{found.kv_cache:,}"
    rows = [
        ("parameters", f"{found.parameters:,}"),
        ("bytes", f"{found.size:,}"),
        ("KV-cache bytes per token", cached),
    ]
    return Section("Size", ("measure", "value"), rows, f"KV-cache: {found.kv_cache_how}")


def _speeds(found: Evaluation) -> Section:
    header = ("run", "batch", "tokens in", "tokens out", "latency", "tokens/s", "peak memory")
    rows = []
    for each in found.speeds:
        peak = NONE if each.peak_memory is None else f"{scaled(each.peak_memory)}B"
        latency = f"{1000 * each.seconds:.1f} ms"
        out = str(each.new) if each.new else NONE
        numbers = (str(each.batch), str(each.prompt), out)
        rows.append((each.kind, *numbers, latency, f"{each.tokens_per_second:.1f}", peak))
    notes = [f"median of {found.settings.rounds}", f"memory: {found.memory_how}"]
    notes += [f"no generation: {found.no_generation}"] if found.no_generation else []
    return Section("Speed", header, rows, "; ".join(notes))


def _perplexities(found: Evaluation) -> Section:
    header = ("text", "BOS", "length", "stride", "windows", "tokens", "perplexity", "stderr")
    rows = []
    for each in found.perplexities:
        score = each.score
        stderr = NONE if score.stderr is None else f"{score.stderr:.3f}"
        rows.append(
            (
                each.text,
                each.bos or "none",
                str(each.length),
                str(each.stride or NONE),
                str(score.windows),
                str(score.tokens),
                f"{score.perplexity:.3f}",
                stderr,
            )
        )
    note = "tokens: those that count; without a stride windows do not overlap"
    return Section("Perplexity", header, rows, note, words=2)


def _continued(found: Evaluation) -> Section:
    grams = tuple(f"distinct-{n}" for n in GRAMS)
    header = ("text", "continuations", "tokens in", "tokens out", "repeated 4-grams", *grams)
    rows = [
        (
            each.text,
            *map(str, (len(each.repeated), each.prompt, each.new)),
            f"{statistics.fmean(each.repeated):.3f}",
            *(f"{each.distinct[n]:.3f}" for n in GRAMS),
        )
        for each in found.continuations
    ]
    return Section("Continuations", header, rows, CONTINUED)


def _tasks(found: Evaluation) -> Section:
    header = ("task", "metric", "value", "stderr", "n", "examples", "version")
    rows = []
    for each in found.tasks:
        stderr = NONE if each.stderr is None else f"{each.stderr:.4f}"
        counts = (str(each.n), str(each.examples), each.version)
        rows.append((each.task, each.metric, f"{each.value:.4f}", stderr, *counts))
    return Section("Tasks", header, rows, words=2)
