"""Colours, lines and the legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from fxprune.groups.group import Group
from fxprune.groups.kinds import KINDS
from fxprune.inspect.drawing.canvas import Canvas, Markup, cell, escape, font, table, wrapped

FROZEN = "frozen"
GREY = "#555555"

# Okabe and Ito's palette, told apart under every common colour blindness: (fill, text).
COLOURS = {
    "mlp": ("#E69F00", "black"),
    "attention": ("#56B4E9", "black"),
    "query": ("#0072B2", "white"),
    "head_dim": ("#CC79A7", "black"),
    "channel": ("#009E73", "black"),
    "expert": ("#D55E00", "black"),
    "state": ("#117733", "white"),
    "conv": ("#882255", "white"),
    "latent": ("#999933", "black"),
    "vocabulary": ("#AA4499", "white"),
    "other": ("#F0E442", "black"),
    FROZEN: ("#D0D0D0", "black"),
}
MEANING = {
    "mlp": "hidden units of an MLP",
    "attention": "key/value heads with their query heads",
    "query": "query heads per key/value head",
    "head_dim": "dims inside a head",
    "channel": "residual stream, convolution channels",
    "expert": "experts",
    "state": "channels, heads or groups of a state",
    "conv": "channels of a convolution along the sequence",
    "latent": "ranks on the way to heads and states",
    "vocabulary": "tokens",
    "other": "other units",
    FROZEN: "cannot be pruned, see the reason",
}

# Tables that are boxes of the picture.
PLAIN: dict[str, str | int] = {
    "BORDER": 0,
    "CELLBORDER": 1,
    "CELLSPACING": 0,
    "CELLPADDING": 3,
    "COLOR": "#777777",
}

Attributes = dict[str, str | float]
LINES: dict[str, tuple[str, Attributes]] = {
    "R1 R2": (
        "R1 and R2: fed by this alone, and feeds this alone",
        {"style": "solid", "penwidth": 2.4, "color": "black"},
    ),
    "R1": ("R1: fed by this alone", {"style": "solid", "penwidth": 1.2, "color": "black"}),
    "R2": ("R2: feeds this alone", {"style": "dashed", "penwidth": 1.2, "color": "black"}),
    "R3": (
        "R3: one to one with this, among others",
        {"style": "dotted", "penwidth": 2.4, "color": "black"},
    ),
    "weight": (
        "parameter of these neurons (R3)",
        {"style": "solid", "penwidth": 1.0, "color": "#A0622D", "arrowhead": "odot"},
    ),
    "all": (
        "all to all: data flow, no dependency",
        {"style": "solid", "penwidth": 1.0, "color": "#8A8A8A", "arrowhead": "vee"},
    ),
    "gap": (
        "neurons in between, not drawn",
        {"style": "dotted", "penwidth": 1.0, "color": "#8A8A8A", "arrowhead": "vee"},
    ),
}

# Around a layer or module, and around a part of it.
FRAME: tuple[Attributes, Attributes] = (
    {"style": "rounded,filled", "color": "#999999", "fillcolor": "#F7F7F7"},
    {"style": "rounded,dashed", "color": "#999999"},
)


def line_of(rules: Set[str], *, parameter: bool) -> str:
    """The line for an edge that these rules follow; a key of :data:`LINES`."""
    if parameter:
        return "weight"
    strongest = " ".join(rule for rule in ("R1", "R2") if rule in rules)
    return strongest or ("R3" if "R3" in rules else "all")


def look_of(group: Group) -> str:
    """What a group is coloured by; a key of :data:`COLOURS`."""
    return FROZEN if group.reason is not None else group.kind


def legend(
    canvas: Canvas,
    looks: Set[str],
    lines: Set[str],
    notes: Sequence[tuple[str, str]],
    depth: Sequence[tuple[str, str]],
    *,
    context: bool = False,
) -> None:
    """Explain the colours and lines that occur, and what is not a box.

    Args:
        canvas: where to draw.
        looks: keys of :data:`COLOURS`.
        lines: keys of :data:`LINES`.
        notes: frozen groups and their reasons.
        depth: places of residual branches, and what is there.
        context: whether neighbours are drawn, white.
    """
    rows: list[Iterable[str]] = []
    for look in (*KINDS, FROZEN):
        if look in looks:
            fill, text = COLOURS[look]
            name = font(escape(look), colour=text)
            meaning = cell(escape(MEANING[look]), ALIGN="LEFT")
            rows.append((cell(name, BGCOLOR=fill, WIDTH=72, HEIGHT=20), meaning))
    if context:
        white = cell(font("neighbour", colour=GREY), BGCOLOR="white", BORDER=1, COLOR="#777777")
        rows.append((white, cell("next to what was asked for", ALIGN="LEFT")))
    for line, (meaning_of_line, look_of_line) in LINES.items():
        if line in lines:
            rows.append((_sample(look_of_line), cell(escape(meaning_of_line), ALIGN="LEFT")))
    if not rows:
        return
    with canvas.cluster("legend", style="rounded", color="#999999"):
        canvas.node("(legend)", table(rows, BORDER=0, CELLBORDER=0, CELLSPACING=3, CELLPADDING=2))
        if notes:
            canvas.node("(frozen)", _notes("frozen", notes, COLOURS[FROZEN][0]))
        if depth:
            canvas.node("(depth)", _notes("residual branches", depth, "white"))


def _sample(look: Attributes) -> Markup:
    """A line drawn as the lower border of a cell: edges would upset the layout."""
    style = {"dashed": "dashed", "dotted": "dotted"}.get(str(look["style"]))
    width = max(1, round(float(look["penwidth"])))
    border: dict[str, str | int] = {"SIDES": "B", "BORDER": width, "COLOR": str(look["color"])}
    if style:
        border["STYLE"] = style
    halves = ([cell("", WIDTH=48, HEIGHT=8, **border)], [cell("", HEIGHT=8)])
    stroke = table(halves, BORDER=0, CELLBORDER=0, CELLSPACING=0, CELLPADDING=0)
    tip = {"odot": "\u25cb", "vee": "&gt;"}.get(str(look.get("arrowhead")), "\u25b6")
    head = cell(font(tip, size=9, colour=str(look["color"])))
    return cell(table([[cell(stroke), head]], BORDER=0, CELLSPACING=0, CELLPADDING=0))


def _notes(heading: str, notes: Sequence[tuple[str, str]], fill: str) -> Markup:
    rows: list[Iterable[str]] = [[cell(f"<B>{heading}</B>", ALIGN="LEFT")]]
    for names, reason in notes:
        text = f"{wrapped(names, 44)}<BR/>{font(wrapped(reason, 44), colour=GREY)}"
        rows.append([cell(text, BGCOLOR=fill, ALIGN="LEFT", BALIGN="LEFT")])
    return table(rows, BORDER=0, CELLBORDER=0, CELLSPACING=3, CELLPADDING=3)
