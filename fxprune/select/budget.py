"""What a pruned model may cost."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fxprune.errors import SelectionError

NAMED = ("params", "macs", "kv_cache", "latency")


@dataclass(frozen=True)
class Budget:
    """Limits on what stays, all of which are met; or a share of units that goes.

    ``params``, ``macs``, ``kv_cache``, ``latency`` and what ``others`` names each say what stays of
    the whole model: at most 1, or a percentage, is a fraction of the original, anything above is
    an absolute number.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of one forward pass of ``shape``, see
            :func:`fxprune.costs.macs`.
        kv_cache: numbers cached per token, see :func:`fxprune.costs.kv_cache`.
        latency: time of one forward pass of ``shape`` on the machine where
            :func:`fxprune.measure_latency` ran; an absolute number is in milliseconds.
        units: instead of limits, the fraction of units *removed* from every group, in [0, 1), or a
            percentage.
        rounding: of ``units``. ``up`` as in LLM-Pruner (arXiv 2305.11627): of ``n`` channels
            ``n - int(n * (1 - units))`` go, and the heads that lie wholly in so many; ``down`` as
            in Wanda-sp (the code of arXiv 2312.11983): ``int(size * units)`` units.
        shape: sequences of a forward pass and tokens of each, for ``macs`` and ``latency``.
        others: limits on costs of your own, by the name they were registered under with
            :func:`fxprune.select.budgets.register_cost`.

    Raises:
        SelectionError: nothing is limited, a limit is not a positive number, ``units`` is outside
            [0, 1) or stands beside a limit, a cost is not known, or ``shape`` is not two whole
            numbers.
    """

    params: float | str | None = None
    macs: float | str | None = None
    kv_cache: float | str | None = None
    latency: float | str | None = None
    units: float | str | None = None
    rounding: Literal["up", "down"] = "up"
    shape: tuple[int, int] = (1, 64)
    others: Mapping[str, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in NAMED} | dict(self.others)
        limits = {name: _stays(name, value) for name, value in given.items() if value is not None}
        others = {name: limits[name] for name in self.others}
        if others:
            _check_known(others)
        self._set("others", others)
        for name in NAMED:
            self._set(name, limits.get(name))
        if self.units is not None:
            self._set("units", fraction("units", self.units))
            if limits:
                raise SelectionError(f"units= cannot be combined with {next(iter(limits))}=")
        elif not limits:
            raise SelectionError(f"a budget needs one of {', '.join(NAMED)} or units")
        if self.rounding not in ("up", "down"):
            raise SelectionError(f"unknown rounding {self.rounding!r}: choose from up, down")
        check_shape(self.shape)
        self._set("shape", tuple(self.shape))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        values: dict[str, Any] = {name: getattr(self, name) for name in NAMED}
        values |= self.others
        return {name: value for name, value in values.items() if value is not None}

    @property
    def removed(self) -> float | None:
        """The fraction of units removed from every group, if it says that and no limits."""
        return None if self.units is None else float(self.units)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _stays(name: str, given: object) -> float:
    value = percentage(given)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Also refuses NaN. 150% of the original is no limit, and not an absolute number either.
    more = str(given).strip().endswith("%") and number and value > 1
    if not number or not 0 < value < math.inf or more:
        raise SelectionError(
            f"{name}={given}: what stays is a fraction in (0, 1], a percentage or a number above 1"
        )
    return float(value) if value <= 1 else value


def _check_known(names: Mapping[str, float]) -> None:
    from fxprune.select.budgets import COSTS

    for name in names:
        if name not in COSTS:
            raise SelectionError(f"a budget cannot limit {name!r}: it knows {', '.join(COSTS)}")


def percentage(given: Any) -> Any:
    """``"80%"`` as 0.8; whatever else is given, as it is."""
    if isinstance(given, str):
        number = given.strip()
        try:
            return float(number[:-1]) / 100 if number.endswith("%") else float(number)
        except ValueError:
            return given
    return given


def fraction(name: str, given: Any) -> float:
    """A fraction that goes, given as a number in [0, 1) or as a percentage.

    Raises:
        SelectionError: it is outside.
    """
    value = percentage(given)
    check_ratio(name, value)
    return float(value)


def left(goal: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    """A goal for a model that has lost parameters, as one for what is left.

    Args:
        goal: ``pruning_ratio`` or ``budget``.
        before: parameters of the model that it is about.
        after: those that are left.

    Raises:
        SelectionError: it is a share of MACs or of time, which are not known any more.
    """
    if "pruning_ratio" in goal:
        return {"pruning_ratio": max(0.0, 1 - (1 - goal["pruning_ratio"]) * before / after)}
    budget: Budget = goal["budget"]
    for name, value in budget.limits.items():
        if name in ("macs", "latency", *budget.others) and value <= 1:
            raise SelectionError(f"{name}={value:g} beside vocabulary=: give a number above 1")
    if budget.params is None or float(budget.params) > 1:
        return {"budget": budget}
    return {"budget": replace(budget, params=min(1.0, float(budget.params) * before / after))}


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
