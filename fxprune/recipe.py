"""The options of ``fxprune prune`` as a value that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxprune.errors import CriterionError, SelectionError

if TYPE_CHECKING:
    from fxprune.importance import Criterion

CRITERIA = ("taylor", "magnitude", "random")
RANKINGS = ("local", "global")


@dataclass(frozen=True)
class Recipe:
    """What to prune and how to measure it; the options of ``fxprune prune``.

    Attributes:
        ratio: fraction of the model's parameters to remove, in [0, 1).
        criterion: ``taylor``, ``magnitude`` or ``random``.
        kinds: kinds of groups to prune.
        ranking: ``local`` or ``global``.
        seed: of calibration crops and random scores.
        keep_first: leave this many layers at the start alone.
        keep_last: leave this many layers at the end alone.
        calibration_samples: crops of text that Taylor sees.
        calibration_length: tokens in each.
        evaluation_samples: windows that perplexity is measured on, spread over the text.
        evaluation_length: tokens in each.
        verify: run the oracle.
    """

    ratio: float = 0.2
    criterion: str = "taylor"
    kinds: tuple[str, ...] = ("mlp", "attention")
    ranking: str = "global"
    seed: int = 0
    keep_first: int = 0
    keep_last: int = 0
    calibration_samples: int = 10
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

        if not 0 <= self.ratio < 1:
            raise SelectionError(f"ratio {self.ratio} is outside [0, 1)")
        if self.criterion not in CRITERIA:
            raise CriterionError(f"no criterion {self.criterion!r}: take {', '.join(CRITERIA)}")
        if self.ranking not in RANKINGS:
            raise SelectionError(f"no ranking {self.ranking!r}: take {', '.join(RANKINGS)}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            what = f"no kind {unknown[0]!r}" if unknown else "no kinds"
            raise SelectionError(f"{what}: take some of {', '.join(KINDS)}")
        for name, least in (
            ("keep_first", 0),
            ("keep_last", 0),
            ("calibration_samples", 1),
            ("calibration_length", 2),
            ("evaluation_samples", 1),
            ("evaluation_length", 2),
        ):
            if getattr(self, name) < least:
                shown = name.replace("_", "-")
                raise SelectionError(f"{shown} is {getattr(self, name)}: at least {least}")

    def make_criterion(self) -> Criterion:
        """The criterion itself."""
        from fxprune.importance import Magnitude, Random, Taylor

        if self.criterion == "random":
            return Random(self.seed)
        return Magnitude() if self.criterion == "magnitude" else Taylor()
