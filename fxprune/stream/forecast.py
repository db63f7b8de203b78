"""What a run in pieces will take: memory, bytes read and sweeps, told from shapes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.branches.pieces import Piece, Pieces, pieces_of
from fxprune.errors import CalibrationError
from fxprune.groups.consumers import consumers, every_consumer
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.group import Group
from fxprune.importance.collect import DERIVATIVES
from fxprune.importance.criterion import Needs
from fxprune.select.candidates import choose_groups
from fxprune.trace.inputs import named
from fxprune.trace.traced import Traced

Shape = tuple[int, int]
_BACKWARD: Needs = DERIVATIVES | {"moments"}


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: in words.
        sweeps: how often the weights are read.
        weights: bytes of them that are there at a time.
        beside: bytes of gradients, moments or normal matrices at a time.
        activations: bytes of one batch.
        stream: bytes of what lies between pieces, of all batches.
    """

    name: str
    sweeps: int
    weights: int
    beside: int
    activations: int
    stream: int

    @property
    def fixed(self) -> int:
        """Bytes where the model runs: all but the stream, which may lie in files."""
        return self.weights + self.beside + self.activations


@dataclass(frozen=True)
class Forecast:
    """What a run in pieces takes.

    Attributes:
        pieces: of the model.
        weights: bytes of the model.
        sweep: bytes that one sweep reads: what several pieces share, each of them reads.
        stages: of the run.
    """

    pieces: Pieces
    weights: int
    sweep: int
    stages: tuple[Stage, ...]

    @property
    def fixed(self) -> int:
        """Bytes where the model runs, at the peak."""
        return max(stage.fixed for stage in self.stages)

    @property
    def stream(self) -> int:
        """Bytes between pieces, at the peak; in host memory, or above a limit in files."""
        return max(stage.stream for stage in self.stages)

    @property
    def read(self) -> int:
        """Bytes that are read in all."""
        return self.sweep * sum(stage.sweeps for stage in self.stages)

    def written(self, ratio: float) -> int:
        """Bytes on disk at the most: the result, and new values until it is whole.

        Args:
            ratio: fraction of the weights that goes.
        """
        mended = any(stage.name == "compensating" for stage in self.stages)
        return int(self.weights * (1 - ratio) * (1 + mended))

    def memory(self, limit: int | None) -> int | None:
        """Bytes of the stream that stay in memory under a limit of all; None for all of them.

        Raises:
            CalibrationError: the limit is below what the pieces need.
        """
        if limit is None:
            return None
        if limit < self.fixed:
            stage = max(self.stages, key=lambda stage: stage.fixed)
            raise CalibrationError(
                f"max_memory={limit} is below what {stage.name} needs, {_shown(self.fixed)}: "
                f"{_shown(stage.weights)} of weights at a time, {_shown(stage.beside)} of what is "
                f"made of them and {_shown(stage.activations)} of activations of one batch. Give "
                f"'{math.ceil(self.fixed / 2**20)}MiB', or smaller batches (batch_size=)"
            )
        return limit - self.fixed

    def rows(self) -> list[tuple[str, ...]]:
        """A table: of each stage what it takes."""
        head = ("stage", "sweeps", "read", "weights", "beside", "activations", "stream")
        return [head] + [
            (
                each.name,
                str(each.sweeps),
                _shown(each.sweeps * self.sweep),
                *map(_shown, (each.weights, each.beside, each.activations, each.stream)),
            )
            for each in self.stages
        ]


def forecast(graph: DependencyGraph, config: Any, needs: Needs, data: Any, more: Any) -> Forecast:
    """What pruning a model in pieces takes.

    Args:
        graph: the groups of the model, which may be on ``meta``.
        config: a :class:`fxprune.PruneConfig`.
        needs: what the criterion needs of data.
        data: calibration that it sees, of which the shapes matter.
        more: likewise of compensation.
    """
    seen, mends = shapes_of(data), shapes_of(more if config.compensation is not None else None)
    depth, batch_size = 0, config.batch_size
    if config.make_depth_criterion() is not None:
        depth = (config.depth.remove or 1) if config.depth.schedule == "greedy" else 1
    groups = choose_groups(graph, config.kinds, names=config.groups)[0] if config.width else ()
    traced = graph.traced
    pieces, sizes = pieces_of(traced), _Sizes(traced)
    tensors = {name: tensor.nbytes for name, tensor in traced.tensors.items()}
    each = [sum(tensors[name] for name in piece.tensors) for piece in pieces]
    pair = max(a + b for a, b in zip(each, [*each[1:], 0], strict=True))
    stream = _stream(pieces, sizes, seen)
    shape = _largest(seen, 1 if "squares" in needs else batch_size)
    stages = []
    if depth:
        live = max(sizes.alive(piece, shape) for piece in pieces)
        stages.append(Stage("choosing blocks", depth, pair, 0, live, 2 * stream))
    if seen and needs:
        back = bool(needs & _BACKWARD)
        live = max(sizes.alive(piece, shape, keep=back) for piece in pieces)
        beside = _beside(graph, pieces, needs, groups)
        between = stream * (len(pieces) + 1 if back else 2)
        stages.append(Stage("scoring", 1 + back, pair, beside, live, between))
    if config.verify:
        stages.append(Stage("proving", 4, max(tensors.values()), 0, 0, 0))
    if mends:
        shapes = [traced.tensors[use.site.tensor].shape for use in every_consumer(graph)]
        flat = [s for s in shapes if len(s) == 2 and s[0] != max(s[0] for s in shapes)] or shapes
        solved = max((8 * _solving(s[-1], s[-2]) for s in flat), default=0)
        shape = _largest(mends, 8)
        live = max(sizes.alive(piece, shape) for piece in pieces[:-1] or pieces)
        tokens, item = sum(map(math.prod, mends)), max(t.dtype.itemsize for t in _all(traced))
        wide = tokens * item * max((max(s[-1], s[-2]) for s in flat), default=0)
        between = 2 * (2 * _stream(pieces, sizes, mends) + wide)
        stages.append(Stage("compensating", 3, max(each), solved, live, between))
    stages.append(Stage("saving", 1, 2 * max(tensors.values()), 0, 0, 0))
    return Forecast(pieces, sum(tensors.values()), sum(each), tuple(stages))


def _all(traced: Traced) -> Iterable[Tensor]:
    return traced.tensors.values()


def _beside(graph: DependencyGraph, pieces: Pieces, needs: Needs, groups: Sequence[Group]) -> int:
    """Bytes that scoring makes of the weights of one piece: gradients, or second moments."""
    scored = {site.tensor for group in groups for site in group.sites if site.parameter}
    read = {use.site.tensor for group in groups for use in consumers(graph, group)}
    found = [0]
    for piece in pieces:
        shapes = {name: graph.traced.tensors[name].shape for name in piece.tensors}
        numbers = sum(math.prod(shapes[name]) for name in shapes if name in scored)
        total = 4 * numbers * (("gradient" in needs) + ("squares" in needs))
        if "moments" in needs:
            seen = [shapes[name] for name in shapes if name in read]
            total += 4 * sum(n * n for shape in seen for n in shape)
            # Of one at a time, what is left of the inverse after each unit, and what makes it.
            total += 8 * 3 * max((max(shape) ** 2 for shape in seen), default=0)
        found.append(total)
    return max(found)


def _solving(one: int, other: int) -> int:
    """Numbers that least squares of a product takes: its normal matrix and the factor of it."""
    return 2 * max(one, other) ** 2 + 4 * one * other


def _largest(shapes: Sequence[Shape], size: int | None) -> Shape:
    """The largest batch, of at most so many rows."""
    cut = [(min(rows, size or rows), length) for rows, length in shapes]
    return max(cut, key=math.prod, default=(1, 1))


def _stream(pieces: Pieces, sizes: _Sizes, shapes: Sequence[Shape]) -> int:
    """Bytes that leave a piece, of all batches."""
    gives = [piece.gives for piece in pieces]
    return sum(
        max((sum(sizes.of(node, shape) for node in nodes) for nodes in gives), default=0) * count
        for shape, count in Counter(shapes).items()
    )


class _Sizes:
    """Bytes of the values of a graph at other sizes than it was captured with."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._known: dict[tuple[str, Shape], int] = {}
        self._axes: dict[str, int] = {}
        for guard in traced.guards.inputs:
            for axis, size in enumerate((guard.shape or ())[:2]):
                if isinstance(size, str):
                    self._axes.setdefault(size, axis)

    def of(self, node: fx.Node, shape: Shape) -> int:
        """Bytes of what a node gives."""
        value = node.meta.get("val")
        values = value if isinstance(value, tuple | list) else (value,)
        return sum(
            x.dtype.itemsize * math.prod(self._number(size, shape) for size in x.shape)
            for x in values
            if isinstance(x, Tensor)
        )

    def alive(self, piece: Piece, shape: Shape, *, keep: bool = False) -> int:
        """Bytes of the values of a piece that are there at a time; for gradients of all of them."""
        nodes = [n for n in piece.module.graph.nodes if n.op == "call_function" and not _views(n)]
        if keep:
            return sum(self.of(node, shape) for node in nodes)
        last = {source: node for node in nodes for source in node.all_input_nodes}
        now = most = 0
        for node in nodes:
            now += self.of(node, shape)
            most = max(most, now)
            now -= sum(
                self.of(s, shape) for s in node.all_input_nodes if last[s] is node and s in last
            )
            now = max(now, 0)
        return most

    def _number(self, size: Any, shape: Shape) -> int:
        if isinstance(size, int):
            return size
        key = str(size), shape
        if key not in self._known:
            expression = size.node.expr
            at = {s: self._at(str(s), shape) for s in expression.free_symbols}
            try:
                self._known[key] = int(expression.subs(at))
            except (TypeError, ValueError):
                self._known[key] = int(size.node.hint or 1)
        return self._known[key]

    def _at(self, symbol: str, shape: Shape) -> int:
        return shape[self._axes[symbol]] if symbol in self._axes else 1


_VIEWS = {"view", "transpose", "expand", "slice", "t", "permute", "unsqueeze", "squeeze", "detach"}


def _views(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "") in _VIEWS


def shapes_of(data: Any) -> list[Shape]:
    """Rows and tokens of each batch of calibration data."""
    batches = data if isinstance(data, list | tuple) else [] if data is None else [data]
    found = []
    for batch in batches:
        given = batch if isinstance(batch, Mapping) else {"x": batch}
        first = next((x for _, x in named((), dict(given)) if isinstance(x, torch.Tensor)), None)
        if first is not None and first.dim():
            found.append((first.shape[0], first.shape[1] if first.dim() > 1 else 1))
    return found


def _shown(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
