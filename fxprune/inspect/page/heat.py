"""Scores as a heat map: layers by kinds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fxprune.errors import CriterionError
from fxprune.groups.kinds import KINDS, kind_of_unit
from fxprune.importance.scores import Scores
from fxprune.inspect.drawing.fold import inside
from fxprune.inspect.drawing.words import unit
from fxprune.inspect.page.elements import Element, element, rect, svg, table, text
from fxprune.inspect.page.widths import Width, layer_at

_CELL, _LEFT, _TOP = 30, 84, 8
Means = dict[str, dict[int, float]]
"""Kind to the mean score of each layer."""


def means(scores: Scores, rows: list[Width]) -> dict[str, Means]:
    """By stack of layers, the mean score of the units of each kind in each layer.

    Args:
        scores: of the model, or of the one that it was pruned from.
        rows: widths of its groups, for their kinds.

    Raises:
        CriterionError: the scores are of another model.
    """
    kinds = {inside(row.name, row.layer): row.kind for row in rows}
    known = {inside(name, layer_at(name)) for name in scores} & kinds.keys()
    sizes = {row.name: row.before for row in rows}
    wrong = [n for n, each in scores.items() if n in sizes and each.numel() > sizes[n]]
    if not known or wrong:
        raise CriterionError(
            "the scores are of another model: "
            + (f"more units in {wrong[0]}" if wrong else "no group of theirs is in this one")
        )
    units: dict[tuple[str, str, int], list[float]] = {}
    for name, tensor in scores.items():
        layer = layer_at(name)
        if layer is not None:
            kind = kinds.get(inside(name, layer)) or kind_of_unit(unit(name))
            units.setdefault((layer[0], kind, layer[1]), []).extend(tensor.double().tolist())
    found: dict[str, Means] = {}
    for (stack, kind, number), values in sorted(units.items(), key=lambda item: _order(item[0])):
        found.setdefault(stack, {}).setdefault(kind, {})[number] = math.fsum(values) / len(values)
    return found


def maps(found: Mapping[str, Means]) -> Iterator[Element]:
    """A picture for each stack."""
    for stack, kinds in found.items():
        numbers = sorted({number for row in kinds.values() for number in row})
        cells = []
        for line, (kind, row) in enumerate(kinds.items()):
            y = _TOP + line * _CELL
            cells.append(text(kind, _LEFT - 8, y + 19, "tick", "end"))
            most = max((abs(v) for v in row.values() if math.isfinite(v)), default=0.0)
            for column, number in enumerate(numbers):
                if number in row:
                    x = _LEFT + column * _CELL
                    cells.append(_cell(x, y, number, kind, row[number], most))
        foot = _TOP + len(kinds) * _CELL + 14
        ticks = [
            text(str(number), _LEFT + (column + 0.5) * _CELL, foot, "tick", "middle")
            for column, number in enumerate(numbers)
        ]
        wide = _LEFT + len(numbers) * _CELL + 8
        title = f"Mean score by kind and layer of {stack}"
        yield svg(title, wide, foot + 8, *cells, *ticks)


def tables(found: Mapping[str, Means]) -> Iterator[Element]:
    """The means as numbers."""
    for stack, kinds in found.items():
        numbers = sorted({number for row in kinds.values() for number in row})
        rows = [
            [str(n), *(f"{row[n]:.6g}" if n in row else "" for row in kinds.values())]
            for n in numbers
        ]
        heads = ["layer ", *(f"{kind} " for kind in kinds)]
        yield table(f"Mean score by layer of {stack}", heads, rows)


def _cell(x: float, y: float, number: int, kind: str, value: float, most: float) -> Element:
    share = value / most if most and math.isfinite(value) else 0.0
    words = f"{share:.2f}".replace("0.", ".", 1) if math.isfinite(value) else "-"
    look = "hot" if share > 0.55 else "cold"
    return element(
        "g",
        element("title", f"layer {number}, {kind}: mean score {value:.6g}"),
        rect(x, y, _CELL - 1.5, _CELL - 1.5, class_="heat", fill_opacity=f"{max(0, share):.3f}"),
        text(words, x + _CELL / 2 - 1, y + 18, look, "middle"),
    )


def _order(key: tuple[str, str, int]) -> tuple[str, int, int]:
    stack, kind, number = key
    return stack, KINDS.index(kind), number
