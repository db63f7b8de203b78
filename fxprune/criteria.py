"""All criteria: what scores units of groups, and what scores whole blocks and branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxprune.depth import named as of_depth
from fxprune.depth.criteria import PPL, AngularDistance, BlockInfluence, DepthCriterion
from fxprune.errors import CriterionError
from fxprune.importance.activation_norm import ActivationNorm
from fxprune.importance.criterion import Criterion, ElementCriterion, InputCriterion
from fxprune.importance.experts import REAP, ExpertNorm, Frequency
from fxprune.importance.flap import FLAP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.named import by_name
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


def of_units(given: Any, seed: int) -> Criterion:
    """What scores units.

    Args:
        given: a criterion, its name, or its name with options.
        seed: of random scores.

    Raises:
        CriterionError: there is none of that name, or it scores blocks alone.
    """
    name = given.get("name") if isinstance(given, Mapping) else given
    if isinstance(given, DepthCriterion) or of_depth.is_depth_only(name):
        raise CriterionError(
            f"{name!r} scores blocks and branches, and units of groups are to go: give it as "
            "depth_criterion=, with depth="
        )
    found = by_name(given, seed) if isinstance(given, str | Mapping) else given
    if not isinstance(found, Criterion):
        raise CriterionError(f"not a criterion: {found!r}; give an instance, such as Taylor()")
    return found


def of_blocks(given: Any, seed: int) -> Criterion | DepthCriterion:
    """What scores blocks and branches, likewise.

    Raises:
        CriterionError: there is none of that name.
    """
    found = of_depth.by_name(given, seed) if isinstance(given, str | Mapping) else given
    if not isinstance(found, Criterion | DepthCriterion):
        raise CriterionError(f"not a criterion: {found!r}; give an instance, such as PPL()")
    return found
