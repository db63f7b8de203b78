"""What rounding makes of the outputs of the original."""

from __future__ import annotations

import torch

from fxprune.proof.original import Original, OriginalRun
from fxprune.trace.outputs import inexact

# Runs with moved parameters, and how many times the largest change in them is allowed. Rounding
# goes on at every op, the parameters are moved once.
_DRAWS, _TIMES = 4, 8


class Rounding:
    """How far apart two runs of the original may be by rounding alone.

    Some models amplify rounding on some inputs: where large values cancel, a difference of one in
    ten million at the start is one in a thousand at the end. No tolerance for all models tells that
    from an error, but the original itself does: every parameter is moved at random by up to one
    rounding of its dtype, a few times (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997).

    Args:
        original: with the units switched off.
        spreads: what was found of its runs by now, by their ``id``; what is found now is added.

    Attributes:
        asked: whether any difference was held against it. The same inputs must then be compared at
            a higher precision.
    """

    def __init__(self, original: Original, spreads: dict[int, list[torch.Tensor]]) -> None:
        self._original = original
        self._spreads = spreads
        self.asked = False

    def slack(self, run: OriginalRun, place: int, dtype: torch.dtype | None) -> torch.Tensor | None:
        """A difference that is no error, for each row of an output (its last axis has size 1).

        Args:
            run: of the original.
            place: of the output among those of the run.
            dtype: precision of the run, if not the model's own.

        Returns:
            None if the original is gone.
        """
        if self._original.consumed:
            return None
        self.asked = True
        if id(run) not in self._spreads:
            self._spreads[id(run)] = self._spread(run, dtype)
        return self._spreads[id(run)][place] * _TIMES

    def _spread(self, run: OriginalRun, dtype: torch.dtype | None) -> list[torch.Tensor]:
        """For each output that has numbers, the largest change in each row."""
        found = [torch.zeros(())] * len(run.outputs)
        for outputs in self._original.jittered(run.example, dtype, _DRAWS):
            for place, (before, after) in enumerate(zip(run.outputs, outputs, strict=True)):
                if isinstance(before, torch.Tensor) and before.numel() and inexact(before.dtype):
                    change = (after - before).abs().nan_to_num(0.0, 0.0)
                    change = change.amax(-1, keepdim=True) if change.dim() else change
                    found[place] = torch.maximum(change, found[place].to(change))
        return found
