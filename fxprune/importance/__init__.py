"""Stage 4: a criterion gives every unit of every group a score."""

from fxprune.importance.criterion import Criterion, ElementCriterion
from fxprune.importance.estimate import estimate
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.random_scores import Random
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor

__all__ = [
    "Criterion",
    "ElementCriterion",
    "Magnitude",
    "Random",
    "Scores",
    "Taylor",
    "estimate",
]
