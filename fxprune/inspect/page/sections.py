"""The parts of the page, each a function from figures to elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fxprune.branches import find_branches
from fxprune.inspect import facts as inspection
from fxprune.inspect.page import bars, curves, heat
from fxprune.inspect.page.elements import Element, element, table
from fxprune.inspect.page.picture import legend, picture
from fxprune.inspect.page.runs import Pruned, Recovered
from fxprune.inspect.page.widths import Width, panels, removed_layers
from fxprune.measure.report import rows as compared
from fxprune.measure.report import scaled
from fxprune.recover.history import History

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.importance.scores import Scores
    from fxprune.plan import Plan

Part = Iterator[Element]


def costs(facts: Mapping[str, Any], plan: Plan | None) -> Part:
    """Parameters, MACs, memory, cache."""
    shown = [("parameters", f"{facts['parameters']:,}")]
    if plan is not None and plan.parameters_before:
        change = plan.parameters_after / plan.parameters_before - 1
        shown.append(("before pruning", f"{plan.parameters_before:,}"))
        shown.append(("change", f"{100 * change:+.1f} %"))
    if facts["macs"] is not None:
        shown.append((f"MACs, {facts['macs_input']}", scaled(facts["macs"])))
    if facts["kv_cache"]:
        shown.append(("KV cache, numbers per token", f"{facts['kv_cache']:,}"))
    shown.append(("weights in fp16", inspection.half(facts)))
    pairs = (element("div", element("dt", a), element("dd", b)) for a, b in shown)
    yield element("dl", *pairs)


def graph_picture(graph: DependencyGraph) -> Part:
    """The collapsed dependency graph."""
    yield legend(graph)
    caption = (
        "Each box is a group of coupled structures, which are pruned together; groups of layers "
        "that look alike are one box. Edges are data flow through the modules beside them."
    )
    yield _figure(picture(graph), caption)


def groups(graph: DependencyGraph, total: int) -> Part:
    """What can be pruned, what cannot and why, and what can go whole."""
    rows = inspection.rows(graph, (*graph.groups, *graph.frozen))
    free = [row for row in rows if row.reason is None]
    heads = ["kind", "groups ", "units ", "where", "parameters ", "share "]
    yield _scroll(
        table(
            f"Can be pruned: {len(graph.groups):,}",
            heads,
            (
                [*_start(row), scaled(row.parameters), f"{100 * row.parameters / total:.1f} %"]
                for row in free
            ),
        )
    )
    frozen = [row for row in rows if row.reason is not None]
    if frozen:
        heads = ["kind", "groups ", "units ", "where", "reason"]
        cells = ([*_start(row), row.reason] for row in frozen)
        yield _scroll(table(f"Frozen: {len(graph.frozen):,}", heads, cells))
    for line in inspection.depth(find_branches(graph.traced)):
        yield element("p", line)


def layer_widths(found: list[Width], plan: Plan | None) -> Part:
    """How many units each layer has, and had."""
    by_panel, gone = panels(found), removed_layers(plan)
    pictures = [bars.layers(p, rows, gone.get(p[0], {})) for p, rows in by_panel.items()]
    if plan is not None:
        said = "Light: before pruning; blue: what is left; a cross: removed whole."
        yield element("p", said)
    if pictures:
        figures = (element("figure", each, class_="scroll", tabindex=0) for each in pictures)
        yield element("div", *figures, class_="pairs")
        tables = bars.layer_table(by_panel, gone)
        yield _details("as a table", *tables)
    rest = [row for row in found if row.layer is None]
    if rest:
        heads = ["group", "kind", "units " if plan is None else "units before "]
        cells = [[row.name, row.kind, f"{row.before:,}"] for row in rest]
        if plan is not None:
            heads.append("after ")
            cells = [[*c, f"{row.after:,}"] for c, row in zip(cells, rest, strict=True)]
        yield _scroll(table("Groups of no single layer", heads, cells))


def score_map(scores: Scores, found: list[Width]) -> Part:
    """The mean scores, layers by kinds."""
    means = heat.means(scores, found)
    caption = (
        "Mean score of the units of a kind in a layer, over the largest mean of that kind: "
        "1 is the layer whose units matter most; kinds are not compared with one another."
    )
    if scores.criterion:
        yield element("p", f"criterion: {scores.criterion}")
    for each in heat.maps(means):
        yield _figure(each, caption)
    yield _details("as a table", *heat.tables(means))


def pruning(report: Pruned) -> Part:
    """The figures of pruning, before and after."""
    before, after = report.before, report.after
    words = list(compared(before, after))
    yield _scroll(table("Measured by pruning", ["", "before ", "after ", "change "], words))
    named = {row[0]: row for row in words}
    drawn = []
    for label in ("perplexity", "latency", "parameters", "MACs"):
        name = label.lower()
        both = getattr(before, name), getattr(after, name)
        if label in named and all(x is not None and math.isfinite(x) for x in both):
            _, old, new, _ = named[label]
            pair = (("before", both[0], old), ("after", both[1], new))
            figures = [bars.Figure(when, float(x), said) for when, x, said in pair]
            drawn.append(element("figure", bars.models(label, figures)))
    yield element("div", *drawn, class_="pairs")
    yield from (element("p", line) for line in report.notes)


def recovery(report: Recovered) -> Part:
    """The figures of recovery, and its losses."""
    drawn = []
    for name, old in report.before.items():
        new = report.after.get(name, math.nan)
        if math.isfinite(old) and math.isfinite(new):
            pair = (("before", old), ("after", new))
            figures = [bars.Figure(when, x, f"{x:.2f}") for when, x in pair]
            drawn.append(_figure(bars.models("perplexity", figures), name))
    if drawn:
        yield element("div", *drawn, class_="pairs")
    yield from (element("p", line) for line in report.notes)
    history = None if report.log is None else History.load(report.log)
    if history is not None and any(math.isfinite(each.loss) for each in history.steps):
        yield _figure(curves.losses(history), "Loss per predicted token in nats, by step.")


def _start(row: inspection.Row) -> list[str]:
    sizes = row.sizes
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,}-{sizes[-1]:,}"
    return [row.kind, f"{row.count:,}", span, row.name]


def _figure(picture: Element, caption: str) -> Element:
    return element("figure", _scroll(picture), element("figcaption", caption))


def _scroll(child: Element) -> Element:
    return element("div", child, class_="scroll", tabindex=0)


def _details(summary: str, *children: Element) -> Element:
    return element("details", element("summary", summary), *map(_scroll, children))


def section(title: str, parts: Iterable[Element]) -> Element:
    """A part of the page under its heading."""
    return element("section", element("h2", title), *parts)
