"""How far the residual stream goes in each unit, in memory and in one sweep over pieces."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from fxprune.branches import Unit
from fxprune.data.calibrate import Calibration, batches
from fxprune.data.graph_inputs import Masks, masks, row_count
from fxprune.data.loader import Source
from fxprune.data.sweep import Read, sweeping
from fxprune.depth.criteria import StreamCriterion
from fxprune.errors import CalibrationError
from fxprune.trace.traced import Traced


class Sums:
    """Sums over tokens of what a criterion says of each unit.

    Args:
        traced: the model.
        criterion: what compares the stream before and behind a unit.
        units: the units.
    """

    def __init__(self, traced: Traced, criterion: StreamCriterion, units: Sequence[Unit]) -> None:
        self._traced, self._criterion, self._units = traced, criterion, units
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def add(self, unit: Unit, entry: Tensor, skip: Tensor, leaves: Tensor, hidden: Masks) -> None:
        """Add one batch.

        Args:
            unit: which unit.
            entry: what enters it.
            skip: what a branch is added to.
            leaves: what leaves it.
            hidden: which tokens count.
        """
        behind = leaves if unit.kind == "block" else skip + leaves
        mask = _mask(self._traced, hidden, unit.exit, entry)
        found = self._criterion.tokens(_tokens(entry), _tokens(behind), mask)
        self._sums[unit.name] += float(found.double().sum())
        self._counts[unit.name] += found.numel()

    def means(self) -> dict[str, float]:
        """The score of each unit.

        Raises:
            CalibrationError: no token counts.
        """
        for unit in self._units:
            if not self._counts[unit.name]:
                raise CalibrationError(
                    f"{unit.name}: the attention mask hides every calibration token"
                )
        return {unit.name: self._sums[unit.name] / self._counts[unit.name] for unit in self._units}


class _Watch:
    """Sees what enters and leaves units while the pieces run."""

    def __init__(
        self, sums: Sums, units: Sequence[Unit], hidden: Sequence[Masks], copies: bool
    ) -> None:
        self.sums, self.hidden, self._copies = sums, hidden, copies
        self.at = by_exit(units)
        self._uses = Counter(node for unit in units for node in {unit.entry, unit.skip})
        self._kept: dict[tuple[int, fx.Node], Tensor] = {}
        self._left: dict[tuple[int, fx.Node], int] = {}
        self._done: set[tuple[int, str]] = set()

    def see(self, batch: int, node: fx.Node, value: Any, read: Read) -> Any:
        """See :class:`fxprune.data.sweep.Watch`; what several pieces are given counts once."""
        for unit in self.at.get(node, ()):
            if (batch, unit.name) in self._done:
                continue
            self._done.add((batch, unit.name))
            entry, skip = (self._kept[batch, each] for each in (unit.entry, unit.skip))
            self.sums.add(unit, entry, skip, value, self.hidden[batch])
            for each in {unit.entry, unit.skip}:
                self._left[batch, each] -= 1
                if not self._left[batch, each]:
                    del self._kept[batch, each]
        if node in self._uses and (batch, node) not in self._left:
            self._kept[batch, node] = value.clone() if self._copies else value
            self._left[batch, node] = self._uses[node]
        return value


def distances_in_pieces(
    traced: Traced,
    criterion: StreamCriterion,
    calibration: Calibration,
    units: Sequence[Unit],
    source: Source,
    batch_size: int | None,
    progress: bool,
) -> dict[str, float]:
    """The scores of units, by one sweep over the pieces of a model.

    Raises:
        CalibrationError: the data does not fit the model, or hides every token.
        CheckpointError: the source has not all of the weights.
    """
    data = batches(traced.module, calibration, batch_size, source.device)
    with sweeping(traced, source, data, progress=progress) as sweep:
        sums = Sums(traced, criterion, units)
        hidden = [masks(traced, values) for values in sweep.inputs]
        pieces = sweep.weights.pieces
        copies = any(piece.writes for piece in pieces)
        last = max((pieces.where[unit.exit] for unit in units), default=-1)
        sweep.forward(last + 1, _Watch(sums, units, hidden, copies))
    return sums.means()


def by_exit(units: Sequence[Unit]) -> dict[fx.Node, list[Unit]]:
    """The units by the node that leaves them."""
    found: dict[fx.Node, list[Unit]] = {}
    for unit in units:
        found.setdefault(unit.exit, []).append(unit)
    return found


def _tokens(value: Tensor) -> Tensor:
    """(batch, tokens, features): the features of images stand on axis 1."""
    if value.dim() == 4:
        value = value.movedim(1, -1)
    return value.unsqueeze(1) if value.dim() == 2 else value.flatten(1, -2)


def _mask(traced: Traced, found: Masks, node: fx.Node, value: Tensor) -> Tensor | None:
    if value.dim() == 4:
        return None
    rows = found.get(row_count(traced, node.meta["val"].shape[:-1]))
    return None if rows is None else rows.view(_tokens(value).shape[:-1])
