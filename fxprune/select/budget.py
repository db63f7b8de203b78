"""What a pruned model may cost."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Literal

from fxprune.errors import SelectionError

LIMITS = ("params", "macs", "kv_cache", "latency")


@dataclass(frozen=True)
class Budget:
    """Limits on what stays, all of which are met; or a share of units that goes.

    ``params``, ``macs``, ``kv_cache`` and ``latency`` each say what stays of the whole model: at
    most 1 is a fraction of the original, anything above is an absolute number.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of one forward pass of ``shape``, see
            :func:`fxprune.costs.macs`.
        kv_cache: numbers cached per token, see :func:`fxprune.costs.kv_cache`.
        latency: time of one forward pass of ``shape`` on the machine where
            :func:`fxprune.measure_latency` ran; an absolute number is in milliseconds.
        units: instead of limits, the fraction of units removed from every group, in [0, 1).
        rounding: of ``units``. ``up`` as in LLM-Pruner (arXiv 2305.11627): of ``n`` channels
            ``n - int(n * (1 - units))`` go, and the heads that lie wholly in so many; ``down`` as
            in Wanda-sp (the code of arXiv 2312.11983): ``int(size * units)`` units.
        shape: sequences of a forward pass and tokens of each, for ``macs`` and ``latency``.

    Raises:
        SelectionError: nothing is limited, a limit is not a positive number, ``units`` is outside
            [0, 1) or stands beside a limit, or ``shape`` is not two whole numbers.
    """

    params: float | None = None
    macs: float | None = None
    kv_cache: float | None = None
    latency: float | None = None
    units: float | None = None
    rounding: Literal["up", "down"] = "up"
    shape: tuple[int, int] = (1, 64)

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:  # also refuses NaN
                raise SelectionError(
                    f"{name}={value}: what stays is a fraction in (0, 1] or a number above 1"
                )
        if self.units is not None:
            check_ratio("units", self.units)
            if self.limits:
                raise SelectionError(f"units= cannot be combined with {next(iter(self.limits))}=")
        elif not self.limits:
            raise SelectionError(f"a budget needs one of {', '.join(LIMITS)} or units")
        if self.rounding not in ("up", "down"):
            raise SelectionError(f"unknown rounding {self.rounding!r}: choose from up, down")
        check_shape(self.shape)

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        values = {name: getattr(self, name) for name in LIMITS}
        return {name: value for name, value in values.items() if value is not None}


def check_shape(shape: tuple[int, int]) -> None:
    """Refuse what is no (batch, length).

    Raises:
        SelectionError: it is not two whole numbers of at least 1.
    """
    if len(shape) != 2 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise SelectionError(f"shape={shape}: give (batch, length), at least 1 each")


def check_ratio(name: str, ratio: float) -> None:
    """Refuse a fraction outside [0, 1).

    Raises:
        SelectionError: it is outside.
    """
    number = isinstance(ratio, numbers.Real) and not isinstance(ratio, bool)
    if not number:
        raise SelectionError(f"{name}={ratio!r}: give a number in [0, 1), such as 0.2")
    if 1 < ratio < 100:
        raise SelectionError(
            f"{name}={ratio} is outside [0, 1): it is a fraction, did you mean {ratio / 100:g}?"
        )
    if not 0 <= ratio < 1:  # also refuses NaN
        raise SelectionError(f"{name}={ratio} is outside [0, 1): it is a fraction, such as 0.2")
