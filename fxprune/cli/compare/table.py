"""From results to a table: one row per configuration, the mean and spread over the draws."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxprune.cli.compare.labels import label, named
from fxprune.cli.compare.results import Result
from fxprune.config import PruneConfig
from fxprune.measure import perplexity

STAGES = ("estimate", "compensate")


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of some numbers."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        return cls(statistics.fmean(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """A configuration over all its draws.

    Attributes:
        config: with seed 0; None for the model as it was.
        draws: how many draws there are.
        parameters: of the whole model; draws may differ by a unit.
        perplexity: by column.
        seconds: mean by stage.
        losses: by column, those of each draw's windows.
    """

    config: PruneConfig | None
    draws: int
    parameters: Spread
    perplexity: dict[str, Spread]
    seconds: dict[str, float]
    losses: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name."""
        return label(self.config) if self.config else "dense"


def rows(results: Iterable[Result]) -> list[Row]:
    """One row per configuration, in the order in which they first come."""
    of: dict[PruneConfig | None, list[Result]] = {}
    for result in results:
        same = result.config and dataclasses.replace(result.config, seed=0)
        of.setdefault(same, []).append(result)
    return [_row(config, draws) for config, draws in of.items()]


def _row(config: PruneConfig | None, draws: list[Result]) -> Row:
    return Row(
        config,
        len(draws),
        Spread.of([draw.parameters for draw in draws]),
        {
            column: Spread.of([draw.perplexity[column] for draw in draws])
            for column in draws[0].perplexity
        },
        {
            stage: statistics.fmean(draw.seconds.get(stage, 0.0) for draw in draws)
            for stage in STAGES
        },
        {column: [draw.losses.get(column, []) for draw in draws] for column in draws[0].perplexity},
    )


def ratios(table: Sequence[Row]) -> str:
    """Markdown tables: perplexities in terms of the first model's that was pruned as far.

    With standard errors, of differences window by window, see
    :func:`fxprune.measure.perplexity.ratio`. Empty where there is nothing to compare.
    """
    goals: list[tuple[dict[str, Any], list[Row]]] = []
    for row in table:
        if row.config is not None:
            goal = row.config.goal()
            members = next((found for known, found in goals if known == goal), None)
            if members is None:
                goals.append((goal, [row]))
            else:
                members.append(row)
    pages = []
    for _, (first, *others) in goals:
        columns = list(first.perplexity)
        lines = [_line([f"perplexity / that of {first.label}", *columns])]
        lines.append(_line(["---"] + ["---:"] * len(columns)))
        for row in others:
            ratio = [perplexity.ratio(row.losses[c], first.losses[c]) for c in columns]
            cells = ("" if r is None else f"{r[0]:.3f} ± {r[1]:.3f}" for r in ratio)
            lines.append(_line([row.label, *cells]))
        pages += ["\n".join(lines) + "\n"] if others else []
    return "\n".join(pages)


def markdown(table: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """A Markdown table, below it how it was made."""
    columns = list(table[0].perplexity)
    head = ["configuration", "parameters", *columns, "draws", *(f"{s}, s" for s in STAGES)]
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in table:
        mean, times = row.parameters.mean, [row.seconds[stage] for stage in STAGES]
        lines.append(
            _line(
                [
                    row.label,
                    f"{mean:,.0f}",
                    *(_shown(row.perplexity[column]) for column in columns),
                    str(row.draws),
                    *(f"{time:.1f}" if time else "" for time in times),
                ]
            )
        )
    lines += ["", *ratios(table).splitlines(), ""]
    return "\n".join([*lines, *(f"* {note}" for note in notes)]).rstrip("\n") + "\n"


def as_csv(table: Sequence[Row]) -> str:
    """The table with every option and number in a column of its own."""
    options = list(dict.fromkeys(name for row in table for name in _options(row.config)))
    columns = list(table[0].perplexity)
    head = ["label", *options, "draws", "parameters", "parameters min", "parameters max"]
    head += [f"{column}{end}" for column in columns for end in ("", " min", " max")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, *(f"{stage} seconds" for stage in STAGES)])
    for row in table:
        values = [_options(row.config).get(name) for name in options]
        found = [row.perplexity[column] for column in columns]
        writer.writerow(
            [
                row.label,
                *("+".join(map(str, v)) if isinstance(v, list) else v for v in values),
                row.draws,
                *(f"{v:.10g}" for v in dataclasses.astuple(row.parameters)),
                *(f"{v:.8g}" for spread in found for v in dataclasses.astuple(spread)),
                *(f"{row.seconds[stage]:.3f}" for stage in STAGES),
            ]
        )
    return stream.getvalue()


def _options(config: PruneConfig | None) -> dict[str, object]:
    """What was asked for, the criterion's options each for itself."""
    if config is None:
        return {}
    name, more = named(config)
    found = {key: value for key, value in config.to_dict().items() if key != "seed"}
    return {"criterion": name, **more, **{k: v for k, v in found.items() if k != "criterion"}}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(spread: Spread) -> str:
    if spread.least == spread.most:
        return _number(spread.mean)
    return f"{_number(spread.mean)} ({_number(spread.least)} to {_number(spread.most)})"


def _number(value: float) -> str:
    # Four digits; beyond a hundred thousand in the form 1.2e+06, as nobody reads the rest.
    return f"{value:.1f}" if 1000 <= value < 1e5 else f"{value:.4g}"
