"""Structured pruning as a torch.fx compiler pass."""

from fxprune.axes.registry import register_rule
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.groups.group import Group, Site
from fxprune.hf.checkpoint import load, save
from fxprune.importance.criterion import Criterion
from fxprune.importance.estimate import estimate
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.random_scores import Random
from fxprune.importance.scores import Scores
from fxprune.importance.taylor import Taylor
from fxprune.plan import Plan
from fxprune.prune import PruneResult, prune
from fxprune.rewrite.oracle import VerifyReport, verify
from fxprune.rewrite.patches import register_patch
from fxprune.rewrite.rewrite import rewrite
from fxprune.select.select import select
from fxprune.trace import Traced, trace

__version__ = "0.1.0"
__all__ = [
    "Criterion",
    "DependencyGraph",
    "FxpruneError",
    "FxpruneWarning",
    "Group",
    "Magnitude",
    "Plan",
    "PruneResult",
    "Random",
    "Scores",
    "Site",
    "Taylor",
    "Traced",
    "VerifyReport",
    "discover",
    "estimate",
    "load",
    "prune",
    "register_patch",
    "register_rule",
    "rewrite",
    "save",
    "select",
    "trace",
    "verify",
]
