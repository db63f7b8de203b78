"""``fxprune inspect``: open a model without weights, show its groups, write what is asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.errors import FxpruneError

if TYPE_CHECKING:
    from rich.console import Console

    from fxprune.groups.dependency import DependencyGraph
    from fxprune.inspect.blank import Blank
    from fxprune.inspect.lost import Lost


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        dot: file for a Graphviz picture.
        json_file: file for all facts, or the explanation.
        html: file for a page.
        scores: file of scores, for the page.
        explain: name of a group, tensor or module to explain instead of everything else.
        to: end of the paths of the explanation.
        layer: show only this layer.
        every: show group by group.
        legal: show the sizes that configs and kernels can take.
        engine: and those that this engine can.
        against: a pruned folder: what it lost, instead of everything else.
    """

    dot: Path | None = None
    json_file: Path | None = None
    html: Path | None = None
    scores: Path | None = None
    explain: str | None = None
    to: str | None = None
    layer: int | None = None
    every: bool = False
    legal: bool = False
    engine: str | None = None
    against: str | None = None

    def check(self) -> None:
        """Refuse options that are of no use together.

        Raises:
            FxpruneError: they are.
        """
        if self.scores is not None and self.html is None:
            raise FxpruneError("--scores are shown on a page: give --html as well")
        if self.engine is not None:
            if not self.legal:
                raise FxpruneError("--for shows what an engine can run: give --legal as well")
            from fxprune.serve.engine import check_name

            check_name(self.engine)
        if self.to is not None and self.explain is None:
            raise FxpruneError("--to is the end of a path: give its beginning, --explain")
        alone = (self.dot, self.html, self.explain, self.layer, self.every, self.legal)
        if self.against is not None and any(alone):
            raise FxpruneError("--against goes alone or with --json: leave the other options out")
        if self.explain is not None and (self.dot or self.html):
            raise FxpruneError("--explain goes alone or with --json: leave --dot and --html out")


def inspect_spec(model: str, wanted: Wanted) -> None:
    """Show what can be pruned of a model and what cannot, or why tensors are coupled.

    Args:
        model: what :func:`fxprune.inspect.blank.open_blank` opens.
        wanted: what to show and to write.

    Raises:
        FxpruneError: a model, name, layer or file is not what it should be; nothing is printed
            then.
    """
    from rich.console import Console

    from fxprune.groups.dependency import discover
    from fxprune.importance.scores import Scores
    from fxprune.inspect import facts as inspection
    from fxprune.inspect.blank import open_blank
    from fxprune.inspect.lost import lost
    from fxprune.progress import step

    scores = None if wanted.scores is None else Scores.load(wanted.scores)
    with step(f"reading {model}"):
        opened = open_blank(model)
    if wanted.against is not None:
        with step(f"reading {wanted.against}"):
            found = lost(opened, open_blank(wanted.against))
        _show_lost(Console(), found, f"{opened.name} against {wanted.against}")
        if wanted.json_file is not None:
            inspection.write_json(wanted.json_file, found.as_json())
        return
    with step("discovering groups"):
        graph = discover(opened.traced)
    if wanted.explain is not None:
        explained = graph.explain(wanted.explain, wanted.to)
        print(explained)
        content = asdict(explained)
    else:
        with step("counting"):
            named = {"model": opened.name, "architecture": opened.architecture}
            facts = {**named, **inspection.facts(graph)}
        if wanted.dot is not None:
            graph.to_dot(wanted.dot, layer=wanted.layer, collapse=wanted.layer is None)
        if wanted.html is not None:
            from fxprune.inspect.page import write_blank

            write_blank(opened, wanted.html, facts=facts, scores=scores)
        _show(Console(), opened, graph, facts, wanted)
        content = inspection.as_json(graph, facts)
    if wanted.json_file is not None:
        inspection.write_json(wanted.json_file, content)


def _show_lost(console: Console, found: Lost, title: str) -> None:
    """Print what a model lost."""
    from rich import box
    from rich.table import Table

    from fxprune.inspect.lost import by_layer

    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    for line in (title, *found.lines()):
        console.print(line, **plain)
    head, rows, others = by_layer(found.groups)
    for first, cells in ((head, rows), (("group", "units"), others)):
        table = Table(*first, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            table.add_row(*row)
        if cells:
            console.print(table)


def _show(
    console: Console,
    opened: Blank,
    graph: DependencyGraph,
    facts: dict[str, Any],
    wanted: Wanted,
) -> None:
    """Print the costs and the tables, and add the legal sizes to the facts."""
    from fxprune.branches import find_branches
    from fxprune.inspect import facts as inspection
    from fxprune.inspect.legality import legality

    sizes = legality(graph, target=wanted.engine) if wanted.legal else None
    if sizes is not None:
        facts["legality"] = inspection.plain_sizes(sizes)
    layer = wanted.layer
    chosen = [
        group
        for group in (*graph.groups, *graph.frozen)
        if layer is None or (group.layer is not None and group.layer[1] == layer)
    ]
    plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console.print(f"{opened.name}: {opened.architecture}", **plain)
    lines = [*inspection.costs(facts), *inspection.defaults(graph)]
    for line in (*lines, *inspection.depth(find_branches(opened.traced))):
        console.print(line, **plain)
    if not chosen:
        console.print(f"no groups in layer {layer}")
    rows = inspection.rows(graph, chosen, each=wanted.every or layer is not None)
    for table in inspection.tables(rows, facts["parameters"]):
        console.print(table)
    if sizes is not None:
        console.print(sizes.table())
