"""All criteria: what scores units of groups, and what scores whole blocks and branches."""

from fxprune.depth.criteria import PPL, AngularDistance, BlockInfluence, DepthCriterion
from fxprune.importance.activation_norm import ActivationNorm
from fxprune.importance.criterion import Criterion, ElementCriterion, InputCriterion
from fxprune.importance.experts import REAP, ExpertNorm, Frequency
from fxprune.importance.flap import FLAP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.obs import OBS
from fxprune.importance.peak_to_peak import PeakToPeak
from fxprune.importance.random_scores import Random
from fxprune.importance.taylor import Taylor
from fxprune.importance.wanda import WandaSP

__all__ = [
    "FLAP",
    "OBS",
    "PPL",
    "REAP",
    "ActivationNorm",
    "AngularDistance",
    "BlockInfluence",
    "Criterion",
    "DepthCriterion",
    "ElementCriterion",
    "ExpertNorm",
    "Frequency",
    "InputCriterion",
    "Magnitude",
    "PeakToPeak",
    "Random",
    "Taylor",
    "WandaSP",
]
