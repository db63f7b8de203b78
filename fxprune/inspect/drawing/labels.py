"""What the boxes of the neuron graph say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fxprune.groups.group import Group
from fxprune.groups.network import NeuronSet
from fxprune.inspect.drawing.canvas import Markup, cell, escape, font, table, wrapped
from fxprune.inspect.drawing.fold import Layer, inside, ranges
from fxprune.inspect.drawing.style import COLOURS, GREY, PLAIN, look_of
from fxprune.inspect.drawing.tiles import Tile, shown
from fxprune.inspect.drawing.words import common_path, shortened, unit

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_MOST = 4  # names in a title
_ARROW = " \u2192 "


def tile_label(graph: DependencyGraph, tile: Tile, focus: Collection[NeuronSet]) -> Markup:
    """A row: what the values are, then their neuron sets, by axis for a parameter."""
    value = tile[0]
    asked = any((value.name, group) in focus for group in value.groups)
    row = [_parameters(tile) if value.tensor else _operations(tile, in_row=asked)]
    axis = ""
    for number, name in enumerate(shown(tile)):
        here = value.axes[number] if asked and value.axes else ""
        if here != axis:
            row.append(cell(font(f"[{here}]", size=9, colour=GREY), SIDES="TB"))
            axis = here
        row.append(_neurons(graph[name], f"c{number}", asked=asked))
    return table([row], **PLAIN)


def folded_label(run: Sequence[Layer], like: Sequence[int]) -> Markup:
    """Stands for layers that are not drawn."""
    numbers = ranges(index for _, index in run)
    layers = "layer" if len(run) == 1 else "layers"
    text = f"<B>{escape(f'{run[0][0]}.{numbers}')}</B>"
    text += f"<BR/>{len(run)} {layers} like {ranges(like)}"
    hint = font("sizes may differ; layer=N draws one", size=9, colour=GREY)
    box = cell(f"{text}<BR/>{hint}", BGCOLOR="#F7F7F7", CELLPADDING=8, STYLE="rounded,dashed")
    return table([[box]], **PLAIN)


def _parameters(tile: Tile) -> Markup:
    names = [inside(value.tensor or "", value.layer) for value in tile]
    # One parameter goes by its module too: "q_proj.weight".
    owners = [name.rpartition(".")[0] for name in names]
    owner = owners[0].rpartition(".")[0] if len(tile) == 1 else common_path(owners)
    own = [name.removeprefix(f"{owner}.") for name in names]
    return _title(shortened(own, _MOST), owner, "#F3E6DC")


def _operations(tile: Tile, *, in_row: bool) -> Markup:
    names = [value.name for value in tile]
    places = [inside(value.module, value.layer) for value in tile]
    if not in_row:
        return _title(shortened(names, _MOST), common_path(places), "white")
    if len(names) > _MOST:
        names = [*names[: _MOST - 1], "\u2026", names[-1]]
    return _title(_ARROW.join(names), places[0], "white")


def _title(text: str, place: str, fill: str) -> Markup:
    lower = f"<BR/>{font(wrapped(place), size=9, colour=GREY)}" if place else ""
    return cell(f"<B>{wrapped(text, 26)}</B>{lower}", BGCOLOR=fill)


def _neurons(group: Group, port: str, *, asked: bool) -> Markup:
    fill, colour = COLOURS[look_of(group)] if asked else ("white", GREY)
    text = font(f"{escape(unit(group.name))}<BR/>{group.size:,}", colour=colour)
    tip = f"{group.name} (frozen: {group.reason})" if group.reason else group.name
    return cell(text, PORT=port, BGCOLOR=fill, TOOLTIP=tip, HREF="#")
