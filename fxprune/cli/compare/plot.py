"""A plot of perplexity against parameters, one line per criterion and its options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.compare.labels import series
from fxprune.cli.compare.table import Row
from fxprune.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "perplexity-parameters.svg"
_COLOURS = (
    *(f"C{place}" for place in range(10)),
    *("gold", "navy", "limegreen", "black", "salmon", "slateblue"),
)
_STYLES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>*"


def plot(table: Sequence[Row], path: Path) -> bool:
    """Draw the table as an SVG, a panel per text and length.

    Returns:
        Whether it was drawn; not without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    columns = list(table[0].perplexity)
    # Text as text, and the same file from the same numbers.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "fxprune"}
    with matplotlib.rc_context(style):
        drawn = len({series(row.config) for row in table if row.config})
        height = max(4.2, 0.19 * drawn + 1)
        figure = Figure(figsize=(4.4 * len(columns) + 3.2, height), layout="constrained")
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for panel, column in zip(panels, columns, strict=True):
            _panel(panel, table, column)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize="small")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return True


def _panel(panel: Axes, table: Sequence[Row], column: str) -> None:
    lines: dict[str, list[Row]] = {}
    colours: dict[str, str] = {}
    variants: dict[str, int] = {}
    for row in table:
        if row.config is None:
            panel.axhline(row.perplexity[column].mean, color="0.5", linewidth=0.8, label="dense")
        else:
            lines.setdefault(series(row.config), []).append(row)
    for name, rows in lines.items():
        # A colour for each criterion; a dash and a marker for each set of other options.
        criterion, _, options = name.partition(", ")
        colour = colours.setdefault(criterion, _COLOURS[len(colours) % len(_COLOURS)])
        variant = variants.setdefault(options, len(variants))
        # What overflowed has no place on the axis; the table names it.
        rows = [row for row in rows if math.isfinite(row.perplexity[column].mean)]
        rows.sort(key=lambda row: row.parameters.mean)
        spreads = [row.perplexity[column] for row in rows]
        panel.errorbar(
            [row.parameters.mean / 1e6 for row in rows],
            [spread.mean for spread in spreads],
            yerr=[
                [spread.mean - spread.least for spread in spreads],
                [spread.most - spread.mean for spread in spreads],
            ],
            label=name,
            color=colour,
            linestyle=_STYLES[variant % len(_STYLES)],
            marker=_MARKERS[variant % len(_MARKERS)],
            markersize=4,
            capsize=2,
            linewidth=1,
        )
    panel.set_yscale("log")
    panel.set_title(column)
    panel.set_xlabel("parameters, millions")
    panel.set_ylabel("perplexity")
    panel.grid(alpha=0.3, which="both")
