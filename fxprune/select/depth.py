"""What to remove of a model's depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fxprune.errors import DepthError
from fxprune.select.budget import fraction
from fxprune.select.options import layer_ranges

Schedule = Literal["one-shot", "greedy", "run", "alternate", "first"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
FIXED = ("alternate", "first")  # no scores are looked at


@dataclass(frozen=True)
class Depth:
    """What to remove of a model's depth.

    Attributes:
        remove: how many units go.
        ratio: instead, the fraction (or percentage) of the whole model's parameters that goes at
            least; units go until it is reached.
        unit: ``block``; ``attention`` or ``mlp`` alone; or ``branch``, either (BlockPruner).
        schedule: ``one-shot`` takes the lowest scores at once, ``greedy`` scores again after each
            removal (SLEB, arXiv 2402.09025; BlockPruner, 2406.10594), ``run`` takes one run of
            neighbouring blocks. Without scores: ``alternate`` takes every other block, the second
            first (DistilBERT), and ``first`` keeps the first blocks (LLM-Pruner's layer-wise mode).
        keep_first: layers at the start of every stack that stay ("+" of Shortened LLaMA, arXiv
            2402.02834, which keeps the first four and the last two).
        keep_last: likewise at the end. Neither counts for ``alternate`` and ``first``.
        ignore: names of modules, or :mod:`fnmatch` patterns, that lose nothing: units that hold a
            parameter of theirs stay.
        only: likewise; units that hold a parameter outside of these stay.
        layers: numbers of the layers, of every stack, that units are taken from: ``"4-20,25"``.

    Raises:
        DepthError: an option is out of its range, or they do not go together.
    """

    remove: int | None = None
    ratio: float | str | None = None
    unit: str = "block"
    schedule: Schedule = "one-shot"
    keep_first: int = 4
    keep_last: int = 2
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    layers: str | None = None

    def __post_init__(self) -> None:
        from fxprune.branches.unit import KINDS  # not above, for it takes torch along

        if self.schedule not in SCHEDULES:
            raise DepthError(f"no schedule {self.schedule!r}: take {', '.join(SCHEDULES)}")
        self._check_amount()
        for name in ("ignore", "only"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "layers", layer_ranges(self.layers))
        if self.keep_first < 0 or self.keep_last < 0:
            raise DepthError("keep_first and keep_last are at least 0")
        if self.unit not in (*KINDS, "branch"):
            raise DepthError(f"no unit {self.unit!r}: take {', '.join((*KINDS, 'branch'))}")
        if self.schedule in ("run", *FIXED) and self.unit != "block":
            raise DepthError(f"{self.schedule} takes blocks, not unit={self.unit!r}")

    def _check_amount(self) -> None:
        counted = self.remove is not None, self.ratio is not None
        if self.schedule == "alternate":
            if any(counted):
                raise DepthError("alternate takes every other block: leave out remove= and ratio=")
        elif sum(counted) != 1:
            raise DepthError("say how much goes: either remove=, a number of units, or ratio=")
        if self.remove is not None and (type(self.remove) is not int or self.remove < 1):
            raise DepthError(f"remove={self.remove}: a whole number, at least 1")
        if self.ratio is not None:
            object.__setattr__(self, "ratio", fraction("ratio", self.ratio))
