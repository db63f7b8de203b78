"""The page: which parts there are, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.files import write_text
from fxprune.groups.dependency import discover
from fxprune.inspect import facts as inspection
from fxprune.inspect.page import sections
from fxprune.inspect.page.elements import Element, document, element
from fxprune.inspect.page.runs import Runs, read_runs
from fxprune.inspect.page.style import STYLE
from fxprune.inspect.page.widths import widths

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph
    from fxprune.importance.scores import Scores
    from fxprune.inspect.blank import Blank
    from fxprune.plan import Plan


def write(
    graph: DependencyGraph,
    path: str | Path,
    *,
    name: str = "",
    facts: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    original: Callable[[str], str] = str,
    scores: Scores | None = None,
    runs: Runs | None = None,
) -> Path:
    """Write everything there is to see of a model as one HTML file.

    It shows the costs, the collapsed dependency graph, the groups and why others are frozen, the
    widths of the layers, and what is given besides. It asks for no other file and runs no script.

    Args:
        graph: of the model, which may be on ``meta``; of the smaller one, if it is pruned.
        path: the file; replaced as a whole or not at all.
        name: of the model.
        facts: those of :func:`fxprune.inspect.facts.facts`; counted if left out. ``architecture``
            among them is the name of the class, if it is not that of the module that was traced.
        plan: what the model was pruned by, for the widths before and after.
        original: a group's name in ``graph`` to its name in the plan, where layers went.
        scores: for a heat map of them.
        runs: figures that pruning and recovery left, see :func:`read_runs`.

    Returns:
        The path.

    Raises:
        CriterionError: the scores are of another model.
        RecoveryError: the log of the run is damaged.
    """
    known = facts or inspection.facts(graph)
    kind = known.get("architecture") or type(graph.traced.module).__name__
    title = f"{name}: {kind}" if name else kind
    parts = _parts(graph, known, plan, original, scores, runs or Runs())
    body = [sections.section(heading, inside) for heading, inside in parts]
    top = element("header", element("h1", title), *sections.costs(known, plan))
    path = Path(path)
    write_text(path, document(f"{title} - fxprune", STYLE, top, element("main", *body)))
    return path


def write_blank(
    opened: Blank,
    path: str | Path,
    *,
    facts: Mapping[str, Any] | None = None,
    scores: Scores | None = None,
) -> Path:
    """Write the page of what :func:`fxprune.inspect.blank.open_blank` opened and what lies beside.

    Args:
        opened: the model.
        path: the file.
        facts: see :func:`write`.
        scores: see there.

    Raises:
        FxpruneError: see there; or a report beside the model is damaged.
    """
    return write(
        discover(opened.traced),
        path,
        name=opened.name,
        facts=facts,
        plan=opened.plan,
        original=opened.original,
        scores=scores,
        runs=None if opened.folder is None else read_runs(opened.folder),
    )


def _parts(
    graph: DependencyGraph,
    facts: Mapping[str, Any],
    plan: Plan | None,
    original: Callable[[str], str],
    scores: Scores | None,
    runs: Runs,
) -> Iterator[tuple[str, Iterator[Element]]]:
    found = widths(graph, plan, original)
    if runs.pruned is not None:
        yield "Before and after pruning", sections.pruning(runs.pruned)
    if runs.recovered is not None:
        yield "Recovery", sections.recovery(runs.recovered)
    yield "Dependency graph", sections.graph_picture(graph)
    if found:
        yield "Widths of the layers", sections.layer_widths(found, plan)
    if scores is not None:
        yield "Scores", sections.score_map(scores, found)
    yield "Groups", sections.groups(graph, facts["parameters"])
