"""One way to prune, as a value that checks itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxprune.errors import CalibrationError, CriterionError, SelectionError

if TYPE_CHECKING:
    from fxprune.importance import Criterion

RANKINGS = ("local", "global")
NORMALISE = ("kind", "group", "standardise", "none")
COMPENSATE = ("bias", "least-squares")


@dataclass(frozen=True)
class Configuration:
    """How to prune, with what data and which random draw.

    Attributes:
        criterion: a name of :data:`fxprune.importance.named.NAMES`.
        ratio: fraction of all the model's parameters to remove, in [0, 1).
        ranking: ``local`` or ``global``.
        normalise: how :func:`fxprune.select` makes scores of different groups comparable; None for
            its default, or ``none`` for scores that are standardised already (FLAP's).
        cost_aware: rank by score per parameter; None for the default of ``select``, or no for
            FLAP's scores, as published.
        kinds: kinds of groups to prune.
        aggregate: how a criterion reduces the members of a group; None for its default.
        compensate: ``bias``, ``least-squares`` or None.
        samples: crops of text that the criterion sees.
        length: tokens in each.
        compensation_samples: crops of the same length that compensation sees; None for ``samples``.
        seed: of the crops and of random scores.
        keep_first: leave this many layers at the start alone.
        keep_last: leave this many layers at the end alone.
    """

    criterion: str = "taylor"
    ratio: float = 0.2
    ranking: str = "local"
    normalise: str | None = None
    cost_aware: bool | None = None
    kinds: tuple[str, ...] = ("mlp", "attention")
    aggregate: str | None = None
    compensate: str | None = None
    samples: int = 10
    length: int = 128
    compensation_samples: int | None = None
    seed: int = 0
    keep_first: int = 0
    keep_last: int = 0

    def check(self) -> None:
        """Refuse what cannot work, before a model is loaded.

        Raises:
            CriterionError: no such criterion, or it has no such aggregate.
            SelectionError: another option is out of its range.
            CalibrationError: too few samples or tokens.
        """
        from fxprune.groups.kinds import KINDS
        from fxprune.select.budget import check_ratio

        check_ratio("ratio", self.ratio)
        _one_of("ranking", self.ranking, RANKINGS)
        _one_of("normalise", self.normalise, (None, *NORMALISE))
        _one_of("compensate", self.compensate, (None, *COMPENSATE))
        for kind in self.kinds or ("",):
            _one_of("kind", kind, KINDS)
        for name in ("keep_first", "keep_last"):
            if getattr(self, name) < 0:
                raise SelectionError(f"{_shown(name)} is {getattr(self, name)}: at least 0")
        for name, least in (("samples", 1), ("length", 2), ("compensation_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise CalibrationError(f"{_shown(name)} is {value}: at least {least}")
        self.make_criterion()

    def make_criterion(self) -> Criterion:
        """The criterion itself.

        Raises:
            CriterionError: there is none of that name, or it does not take the aggregate.
        """
        from fxprune.importance.named import by_name

        criterion = by_name(self.criterion, self.seed)
        if self.aggregate is None:
            return criterion
        if not takes_aggregate(self.criterion):
            raise CriterionError(f"{self.criterion} has no aggregate: leave it out")
        changes: dict[str, Any] = {"aggregate": self.aggregate}
        return dataclasses.replace(criterion, **changes)

    def selection(self) -> dict[str, Any]:
        """Options of :func:`fxprune.select` beside the ratio."""
        options: dict[str, Any] = {
            "kinds": self.kinds,
            "ranking": self.ranking,
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
        }
        if self.normalise is not None:
            options["normalise"] = self.normalise
        if self.cost_aware is not None:
            options["cost_aware"] = self.cost_aware
        if self.compensate == "bias":
            options["gain_bias"] = True
        return options

    @property
    def label(self) -> str:
        """A short name for tables: what differs from the defaults, the seed left out."""
        return f"{self.series}, {100 * self.ratio:g} %"

    @property
    def series(self) -> str:
        """The label without the ratio: configurations of one line in a plot share it."""
        default = Configuration()
        parts = [self.criterion, self.ranking]
        if self.normalise is not None:
            parts.append(f"normalise {self.normalise}")
        if self.cost_aware is not None:
            parts.append("cost-aware" if self.cost_aware else "not cost-aware")
        if self.kinds != default.kinds:
            parts.append("+".join(self.kinds))
        if self.aggregate is not None:
            parts.append(f"aggregate {self.aggregate}")
        if (self.samples, self.length) != (default.samples, default.length):
            parts.append(f"{self.samples} x {self.length} tokens")
        if self.keep_first or self.keep_last:
            parts.append(f"keep {self.keep_first}/{self.keep_last} layers")
        if self.compensate is not None:
            more = self.compensation_samples
            parts.append(self.compensate + (f" ({more} x {self.length})" if more else ""))
        return ", ".join(parts)


def takes_aggregate(name: str) -> bool:
    """Whether a criterion reduces the members of a group by a choice of the user."""
    from fxprune.importance.named import by_name

    return any(field.name == "aggregate" for field in dataclasses.fields(by_name(name)))


def _one_of(name: str, value: str | None, choices: Sequence[str | None]) -> None:
    if value not in choices:
        shown = ", ".join(choice or "none" for choice in choices)
        raise SelectionError(f"no {name} {value!r}: take {shown}")


def _shown(name: str) -> str:
    return name.replace("_", "-")
