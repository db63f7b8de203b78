"""What an explanation of a coupling holds, and its text, in which what is alike is said once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from fxprune.groups.kinds import layer_of
from fxprune.inspect.drawing.fold import inside, ranges
from fxprune.inspect.drawing.words import span, without_numbers

Way = Literal["feeds", "is fed by", "meets"]
_ARROWS = {"feeds": "->", "is fed by": "<-", "meets": "=="}
_MEANING = {
    "->": "feeds",
    "<-": "is fed by",
    "==": "is contracted with",
    "R1": "fed by this alone",
    "R2": "feeds this alone",
    "R3": "one to one with this",
}
_SHARED = 2  # so many steps of another path are not said again
_WIDE = 40  # longer lists of ops break


@dataclass(frozen=True)
class Step:
    """One edge of the neuron graph on a path.

    Attributes:
        source: the value that the step leaves: an FX node, or the FQN of a tensor.
        target: the value that it reaches.
        way: ``feeds``; ``is fed by``, against the data flow; or ``meets``, where both are operands
            of a product that contracts their axes.
        op: the FX node that ties the two: the later one of them, or the product.
        module: FQN of the module that holds the op.
        location: line of model code of the op, as ``file.py:line``; "" if unknown.
        rules: the dependency rules that the edge follows, of ``R1``, ``R2`` and ``R3``.
    """

    source: str
    target: str
    way: Way
    op: str
    module: str
    location: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class DependencyPath:
    """How the rules lead from the first site of a coupling to another.

    Attributes:
        tensor: canonical FQN of the tensor that is reached.
        axis: its axis.
        steps: the steps, none for the first site itself; None where no rule leads there, as in a
            group that is frozen because axes do not align.
    """

    tensor: str
    axis: int
    steps: tuple[Step, ...] | None

    @property
    def site(self) -> str:
        """The site that is reached, as ``fqn[axis]``."""
        return f"{self.tensor}[{self.axis}]"


@dataclass(frozen=True)
class Coupling:
    """Why the sites of one group belong together.

    Attributes:
        group: the group's name.
        kind: its kind.
        size: its number of units.
        sites: its number of sites.
        reason: why it is frozen; None if it can be pruned.
        start: the site that the paths start from, as ``fqn[axis]``.
        paths: one for each site, or for those asked for.
    """

    group: str
    kind: str
    size: int
    sites: int
    reason: str | None
    start: str
    paths: tuple[DependencyPath, ...]


@dataclass(frozen=True)
class Explanation:
    """Why the sites of some groups belong together; prints as text.

    Attributes:
        name: what was asked about.
        couplings: one for each group of that name, or of that tensor or module.
    """

    name: str
    couplings: tuple[Coupling, ...]

    def __str__(self) -> str:
        return _text(self)


def _text(explanation: Explanation) -> str:
    """The whole explanation, with a legend of what occurs in it."""
    lines: list[str] = []
    for coupling in explanation.couplings:
        lines += [*_coupling(coupling), ""]
    words = {word for line in lines for word in line.split()}
    legend = [f"{sign} {meaning}" for sign, meaning in _MEANING.items() if sign in words]
    return "\n".join([*lines, "; ".join(legend)]).rstrip()


def _coupling(coupling: Coupling) -> Iterator[str]:
    yield f"{coupling.group}: {coupling.kind}, {coupling.size:,} units, {coupling.sites} sites"
    if coupling.reason is not None:
        yield f"frozen: {coupling.reason}"
    yield f"from {coupling.start}"
    told: list[DependencyPath] = []
    for alike in _alike(coupling.paths):
        path, others = alike[0], alike[1:]
        if path.site == coupling.start and path.steps == ():
            if not others:
                continue
            path, others = others[0], others[1:]
        yield f"to {path.site}"
        yield from _path(path, told)
        told.append(path)
        if others:
            lengths = [len(other.steps) for other in others if other.steps is not None]
            steps = f", {span(lengths)} steps away" if lengths else ""
            name = without_numbers([path.tensor])[0]
            yield f"    and {len(others)} more: {name}[{path.axis}]{steps}"


def _alike(paths: Iterable[DependencyPath]) -> list[list[DependencyPath]]:
    """Paths by site, numbers of layers apart; the shortest first."""
    found: dict[tuple[str, int], list[DependencyPath]] = {}
    for path in paths:
        found.setdefault((without_numbers([path.tensor])[0], path.axis), []).append(path)
    return [sorted(alike, key=lambda path: len(path.steps or ())) for alike in found.values()]


def _path(path: DependencyPath, told: Sequence[DependencyPath]) -> Iterator[str]:
    if path.steps is None:
        yield "    no rule leads there: they are held together by the reason above"
        return
    shared, like = max(
        ((_common(path.steps, other.steps or ()), other) for other in told),
        key=lambda pair: pair[0],
        default=(0, path),
    )
    steps = path.steps
    if shared >= _SHARED:
        yield f"    as to {like.site} until {_short(steps[shared - 1].target)}"
        steps = steps[shared:]
    rows = list(_rows(steps))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else []
    for row in rows:
        yield "    " + "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2]])


def _common(a: Sequence[Step], b: Sequence[Step]) -> int:
    count = 0
    for mine, theirs in zip(a, b, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _rows(steps: Sequence[Step]) -> Iterator[tuple[str, str, str]]:
    """Ops, rules and place; layers that are passed alike once."""
    runs = [(layer, list(run)) for layer, run in groupby(steps, lambda s: layer_of(s.module))]
    before: object = None
    passed: list[int] = []
    for place, (layer, run) in enumerate(runs):
        shape = layer and [
            (step.way, inside(step.module, layer), step.location, step.rules) for step in run
        ]
        last = place == len(runs) - 1
        if layer is not None and shape == before and not last:
            passed.append(layer[1])
            continue
        yield from _passed(passed)
        passed = []
        before = shape
        yield from _lines(run)


def _passed(numbers: list[int]) -> Iterator[tuple[str, str, str]]:
    if numbers:
        yield "...", "", f"likewise through layer{'s'[: len(numbers) - 1]} {ranges(numbers)}"


def _lines(run: Iterable[Step]) -> Iterator[tuple[str, str, str]]:
    """Neighbouring steps of the same line of code, way and rules in one line."""
    alike = groupby(
        run, lambda s: (s.way, s.module, s.location, s.rules, s.way == "meets" and s.op)
    )
    for (way, module, location, rules, product), steps in alike:
        arrow = _ARROWS[way]
        place = "  ".join(part for part in (product, module, location) if part)
        line = ""
        for step in steps:
            added = f"{arrow} {_short(step.target)}"
            if line and len(line) + len(added) >= _WIDE:
                yield line, " ".join(rules), place
                line = ""
            line = f"{line} {added}".strip()
        yield line, " ".join(rules), place


def _short(value: str) -> str:
    """A tensor by its last two names, an op as it is."""
    return ".".join(value.split(".")[-2:])
