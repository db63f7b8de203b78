"""New sizes and positions of every axis under a plan."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import fx

from fxprune.axes import dims, positions
from fxprune.axes.dims import Dim, Layout
from fxprune.axes.positions import Units
from fxprune.ops.context import Inferred
from fxprune.trace.sizes import Sizes


class Axis(NamedTuple):
    """An axis under a plan.

    Attributes:
        layout: of the original, held, so that its ``id`` stays its own.
        changed: whether it loses units.
        size: after pruning (of a symbolic axis: of its stand-in).
        kind: the same for axes that have the same size, symbolic sizes included.
    """

    layout: Layout
    changed: bool
    size: int
    kind: int | Layout


class Resizer:
    """Answers what becomes of an axis when a plan is applied.

    Args:
        inferred: the axes of the graph.
        kept: the units that stay, by dim; absent dims keep all.
        sizes: stand-ins of symbolic sizes.
    """

    def __init__(self, inferred: Inferred, kept: Mapping[Dim, Units], sizes: Sizes) -> None:
        self.inferred = inferred
        self.sizes = sizes
        self.kept = kept
        self._counts = {dim: len(units) for dim, units in kept.items()}
        # By identity, for layers share layouts.
        self._known: dict[int, Axis] = {}

    @cached_property
    def empty(self) -> frozenset[str]:
        """The symbols of lists of rows that are empty, for their units are gone."""
        lists = self.inferred.lists.items()
        gone = {id(x): set(self.removed(x).tolist()) for _, (x, _) in lists if self.changed(x)}
        return frozenset(symbol for symbol, (x, place) in lists if place in gone.get(id(x), ()))

    def axes(self, node: fx.Node) -> tuple[Layout, ...]:
        """Layouts of a single-valued node's axes."""
        axes = self.inferred.axes[node]
        assert isinstance(axes, tuple)
        return axes

    def stand_ins(self, value: torch.Tensor) -> tuple[int, ...]:
        """The shape with stand-in numbers for symbolic sizes."""
        return tuple(map(self.sizes.value, value.shape))

    def axis(self, layout: Layout) -> Axis:
        """What becomes of an axis."""
        return self._known.get(id(layout)) or self._found(layout)

    def changed(self, layout: Layout) -> bool:
        """Whether the axis loses units."""
        return self.axis(layout).changed

    def size(self, layout: Layout) -> int:
        """Size after pruning (of a symbolic axis: of its stand-in)."""
        return self.axis(layout).size

    def _found(self, layout: Layout) -> Axis:
        atoms = list(dims.atoms(layout))
        changed = any(atom in self.kept for atom in atoms)
        size = positions.kept_size(layout, self._counts) if changed else layout.size
        kind = size if all(atom.free is False for atom in atoms) else layout
        self._known[id(layout)] = found = Axis(layout, changed, size, kind)
        return found

    def index(self, layout: Layout) -> torch.Tensor:
        """Positions that stay, int64 of shape (size after,), ascending."""
        return torch.from_numpy(positions.index(layout, self.kept))

    def removed(self, layout: Layout) -> torch.Tensor:
        """Positions that go, int64, ascending: all that :meth:`index` lacks."""
        gone = torch.ones(layout.size, dtype=torch.bool)
        gone[self.index(layout)] = False
        return gone.nonzero()[:, 0]

    def before(self, layout: Layout, boundary: int) -> int:
        """How many of the first ``boundary`` positions stay."""
        return bisect.bisect_left(positions.index(layout, self.kept), boundary)

    def static_factor(self, layout: Layout) -> tuple[int, int]:
        """(old, new) product of the non-symbolic factors of an axis."""
        old = new = 1
        for atom in dims.atoms(layout):
            if not atom.free:
                old *= atom.size
                new *= self._counts.get(atom, atom.size)
        return old, new

    def slice(self, tensor: torch.Tensor, layouts: tuple[Layout, ...]) -> torch.Tensor:
        """The tensor without the pruned positions; itself if it loses none."""
        shrinking = [axis for axis, layout in enumerate(layouts) if self.changed(layout)]
        # The axis that loses most goes first: later copies are then smaller.
        shrinking.sort(key=lambda axis: self.size(layouts[axis]) / max(1, layouts[axis].size))
        for axis in shrinking:
            tensor = tensor.index_select(axis, self.index(layouts[axis]).to(tensor.device))
        return tensor
