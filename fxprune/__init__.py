"""Structured pruning as a torch.fx compiler pass."""

from fxprune.axes.registry import register_rule
from fxprune.branches import Branches, Unit, bypass, find_branches
from fxprune.compensate import CompensationReport, compensate
from fxprune.depth import (
    PPL,
    AngularDistance,
    BlockInfluence,
    DepthCriterion,
    Removal,
    choose_depth,
    score_units,
)
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.groups.dependency import DependencyGraph, discover
from fxprune.groups.group import Group, Site
from fxprune.hf.adapter import shrink_adapter
from fxprune.hf.folder.apply import apply
from fxprune.hf.folder.checkpoint import load, save
from fxprune.hf.shrink.shrink import shrink
from fxprune.importance import (
    FLAP,
    OBS,
    ActivationNorm,
    Criterion,
    ElementCriterion,
    InputCriterion,
    Magnitude,
    PeakToPeak,
    Random,
    Scores,
    Taylor,
    WandaSP,
    estimate,
)
from fxprune.inspect.explanation import Explanation
from fxprune.inspect.legality import check_plan, legality
from fxprune.measure.latency import measure_latency
from fxprune.measure.latency_report import LatencyReport
from fxprune.plan import Plan
from fxprune.proof.oracle import VerifyReport, verify
from fxprune.prune import PruneResult, prune
from fxprune.recover import (
    Distillation,
    FullTraining,
    LoRA,
    PrunedAndRecovered,
    Recovery,
    Training,
    prune_and_recover,
    recover,
)
from fxprune.rewrite.patches import register_patch
from fxprune.rewrite.rewrite import rewrite
from fxprune.select import Budget, Depth, select
from fxprune.select.latency import LatencyTable
from fxprune.serve.pt2 import export
from fxprune.stream import propagate
from fxprune.trace import Traced, trace

__version__ = "0.1.0"
__all__ = [
    "FLAP",
    "OBS",
    "PPL",
    "ActivationNorm",
    "AngularDistance",
    "BlockInfluence",
    "Branches",
    "Budget",
    "CompensationReport",
    "Criterion",
    "DependencyGraph",
    "Depth",
    "DepthCriterion",
    "Distillation",
    "ElementCriterion",
    "Explanation",
    "FullTraining",
    "FxpruneError",
    "FxpruneWarning",
    "Group",
    "InputCriterion",
    "LatencyReport",
    "LatencyTable",
    "LoRA",
    "Magnitude",
    "PeakToPeak",
    "Plan",
    "PruneResult",
    "PrunedAndRecovered",
    "Random",
    "Recovery",
    "Removal",
    "Scores",
    "Site",
    "Taylor",
    "Traced",
    "Training",
    "Unit",
    "VerifyReport",
    "WandaSP",
    "apply",
    "bypass",
    "check_plan",
    "choose_depth",
    "compensate",
    "discover",
    "estimate",
    "export",
    "find_branches",
    "legality",
    "load",
    "measure_latency",
    "propagate",
    "prune",
    "prune_and_recover",
    "recover",
    "register_patch",
    "register_rule",
    "rewrite",
    "save",
    "score_units",
    "select",
    "shrink",
    "shrink_adapter",
    "trace",
    "verify",
]
