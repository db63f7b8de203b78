"""The options of ``fxprune prune`` as a value that checks itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxprune.errors import CriterionError, SelectionError

if TYPE_CHECKING:
    from fxprune.importance import Criterion
    from fxprune.select import Budget

RANKINGS = ("local", "global")
COMPENSATIONS = ("auto", "none", "bias", "least-squares")


@dataclass(frozen=True)
class Recipe:
    """What to prune and how to measure it; the options of ``fxprune prune``.

    Attributes:
        ratio: fraction of the model's parameters to remove, in [0, 1).
        macs: what may stay of the MACs: a fraction, or a number above 1.
        kv_cache: what may stay of the key/value cache, likewise.
        units: instead of all these, the fraction of units to remove from every group.
        criterion: a name of :data:`fxprune.importance.named.NAMES`; None with saved scores.
        scores: instead of a criterion, the file of scores that an earlier run saved.
        kinds: kinds of groups to prune.
        ranking: ``local`` or ``global``.
        multiple_of: the number of units that stay in a group that loses some is a multiple of it.
        layer_ratios: pattern of group names to the fraction of units that goes there.
        steps: reach the goal in so many steps.
        compensate: ``none``, ``bias``, ``least-squares``; ``auto`` is the latter for a language
            model and else none.
        seed: of calibration crops and random scores.
        keep_first: leave this many layers at the start alone.
        keep_last: leave this many layers at the end alone.
        calibration_samples: crops of text that the criterion sees; None for its own number, see
            :attr:`samples`.
        compensation_samples: crops that compensation sees; those of the criterion come first.
        calibration_length: tokens in each.
        evaluation_samples: windows that perplexity is measured on, spread over the text.
        evaluation_length: tokens in each.
        verify: run the oracle.
    """

    ratio: float | None = 0.2
    macs: float | None = None
    kv_cache: float | None = None
    units: float | None = None
    criterion: str | None = "obs"
    scores: str | None = None
    kinds: tuple[str, ...] = ("mlp", "attention")
    ranking: str = "global"
    multiple_of: int = 1
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1
    compensate: str = "auto"
    seed: int = 0
    keep_first: int = 0
    keep_last: int = 0
    calibration_samples: int | None = None
    compensation_samples: int = 128
    calibration_length: int = 128
    evaluation_samples: int = 64
    evaluation_length: int = 128
    verify: bool = True

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            SelectionError: an option is out of its range.
            CriterionError: there is no such criterion.
        """
        from fxprune.groups.kinds import KINDS
        from fxprune.select import goals
        from fxprune.select.budget import check_ratio

        goals(self.steps, **self.goal())
        self.make_criterion()
        if self.scores is not None and self.steps > 1:
            raise SelectionError(f"{self.steps} steps need new scores before each: no saved ones")
        for pattern, share in self.layer_ratios.items():
            check_ratio(f"layer-ratio {pattern}", share)
        for name, value, choices in (
            ("ranking", self.ranking, RANKINGS),
            ("compensate", self.compensate, COMPENSATIONS),
        ):
            if value not in choices:
                raise SelectionError(f"no {name} {value!r}: take {', '.join(choices)}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            what = f"no kind {unknown[0]!r}" if unknown else "no kinds"
            raise SelectionError(f"{what}: take some of {', '.join(KINDS)}")
        for name, least in (
            ("multiple_of", 1),
            ("keep_first", 0),
            ("keep_last", 0),
            ("calibration_samples", 1),
            ("compensation_samples", 1),
            ("calibration_length", 2),
            ("evaluation_samples", 1),
            ("evaluation_length", 2),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                shown = name.replace("_", "-")
                raise SelectionError(f"{shown} is {value}: at least {least}")

    def goal(self) -> dict[str, Any]:
        """What is asked for: ``pruning_ratio`` or ``budget`` of :func:`fxprune.prune`.

        Raises:
            SelectionError: nothing is, or a number is out of its range.
        """
        from fxprune.select import Budget
        from fxprune.select.budget import check_ratio

        if self.macs is None and self.kv_cache is None and self.units is None:
            return {"pruning_ratio": self.ratio}
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
        params = None if not self.ratio else 1 - self.ratio
        budget: Budget = Budget(params, self.macs, self.kv_cache, self.units)
        return {"budget": budget}

    def selection(self) -> dict[str, Any]:
        """Further options of :func:`fxprune.select`."""
        local = self.units is not None
        return {
            "kinds": self.kinds,
            "ranking": "local" if local else self.ranking,
            "keep_first": self.keep_first,
            "keep_last": self.keep_last,
            "multiple_of": self.multiple_of,
            "overrides": dict(self.layer_ratios),
        }

    @property
    def samples(self) -> int:
        """Crops that the criterion sees: 10 as in LLM-Pruner, but 128 for covariances (``obs``)."""
        if self.calibration_samples is not None:
            return self.calibration_samples
        return 128 if self.criterion == "obs" else 10

    def make_criterion(self) -> Criterion | None:
        """The criterion itself; None with saved scores.

        Raises:
            CriterionError: there is none of that name, or not one of the two is given.
        """
        from fxprune.importance.named import by_name

        if (self.criterion is None) == (self.scores is None):
            raise CriterionError("give either a criterion or saved scores")
        if self.criterion is None:
            return None
        return by_name(self.criterion, self.seed)
