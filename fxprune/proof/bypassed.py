"""The original at full size with residual branches and blocks switched off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxprune.branches.find import find_branches
from fxprune.branches.reach import Flow
from fxprune.proof.runs import Run
from fxprune.trace.lockstep import Weights
from fxprune.trace.traced import Traced


class BypassedRun(Run):
    """Runs the original graph at full size with units switched off: what the shorter one must give.

    What leaves a removed block is overwritten with what entered it; a removed term with zeros.

    Args:
        traced: the original.
        names: the removed units.
        dtype: precision, see :class:`Run`.
        weights: likewise.
    """

    def __init__(
        self,
        traced: Traced,
        names: Iterable[str],
        dtype: torch.dtype | None = None,
        weights: Weights | None = None,
    ) -> None:
        # The entry of a block is needed after its last use.
        super().__init__(traced.graph_module, dtype, weights=weights, garbage_collect_values=False)
        units = [find_branches(traced)[name] for name in names]
        self._off = {unit.exit: unit for unit in units}
        self._entered: dict[fx.Node, Any] = {u.entry: None for u in units if u.kind == "block"}
        flow = Flow(traced.graph_module.graph)
        # What enters a block is what was written into it until then.
        self._entry_at = {n: e for e in self._entered for n in (e, *flow.settled(e))}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; the value of one that leaves a removed unit is replaced."""
        value = super().run_node(n)
        unit = self._off.get(n)
        if unit is not None:
            value = self._entered[unit.entry] if unit.kind == "block" else torch.zeros_like(value)
        entry = self._entry_at.get(n)
        if entry is not None:  # the block may change it in place
            self._entered[entry] = (value if n is entry else self.env[entry]).clone()
        return value
