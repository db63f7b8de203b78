"""Stage 4: a criterion gives every unit of every group a score."""

from fxprune.importance.activation_norm import ActivationNorm
from fxprune.importance.criterion import Criterion, ElementCriterion, InputCriterion
from fxprune.importance.estimate import estimate
from fxprune.importance.evidence import Evidence, Gradients, Input
from fxprune.importance.flap import FLAP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.named import NAMES, by_name
from fxprune.importance.obs import OBS
from fxprune.importance.peak_to_peak import PeakToPeak
from fxprune.importance.random_scores import Random
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor
from fxprune.importance.wanda import WandaSP

__all__ = [
    "FLAP",
    "NAMES",
    "OBS",
    "ActivationNorm",
    "Criterion",
    "ElementCriterion",
    "Evidence",
    "Gradients",
    "Input",
    "InputCriterion",
    "Magnitude",
    "PeakToPeak",
    "Random",
    "Scores",
    "Taylor",
    "WandaSP",
    "by_name",
    "estimate",
]
