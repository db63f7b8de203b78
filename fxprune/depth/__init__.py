"""Depth: which residual branches and blocks go."""

from fxprune.depth.criteria import PPL, AngularDistance, BlockInfluence, DepthCriterion
from fxprune.depth.score import score_units
from fxprune.depth.search import Removal, choose_depth

__all__ = [
    "PPL",
    "AngularDistance",
    "BlockInfluence",
    "DepthCriterion",
    "Removal",
    "choose_depth",
    "score_units",
]
