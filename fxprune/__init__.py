"""Structured pruning as a torch.fx compiler pass.

Names are loaded when they are first used, so that the command line answers at once.
"""

# ruff: noqa: F401
from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.branches import Branches, Unit, bypass, find_branches  # type: ignore[no-redef]
    from fxprune.compensate import CompensationReport, compensate  # type: ignore[no-redef]
    from fxprune.config import PruneConfig
    from fxprune.criteria import (
        FLAP,
        OBS,
        PPL,
        REAP,
        ActivationNorm,
        AngularDistance,
        BlockInfluence,
        Criterion,
        DepthCriterion,
        ElementCriterion,
        ExpertNorm,
        Frequency,
        InputCriterion,
        Magnitude,
        PeakToPeak,
        Random,
        Taylor,
        WandaSP,
    )
    from fxprune.depth import Removal, choose_depth, score_units
    from fxprune.errors import FxpruneError, FxpruneWarning
    from fxprune.groups.dependency import DependencyGraph, discover
    from fxprune.groups.group import Group, Site
    from fxprune.hf.adapter import shrink_adapter
    from fxprune.hf.folder.apply import apply
    from fxprune.hf.folder.checkpoint import load, save
    from fxprune.hf.folder.weights import Weights
    from fxprune.hf.shrink.shrink import shrink
    from fxprune.importance import Scores, estimate  # type: ignore[no-redef]
    from fxprune.inspect.explanation import Explanation
    from fxprune.inspect.legality import check_plan, legality
    from fxprune.measure.latency import measure_latency
    from fxprune.measure.latency_report import LatencyReport
    from fxprune.ops.op import register_op
    from fxprune.plan import Plan
    from fxprune.proof.oracle import VerifyReport, verify
    from fxprune.prune import prune
    from fxprune.recover.callback import PruningCallback
    from fxprune.recover.gradual import GradualPruner
    from fxprune.recover.methods import Distillation, FullTraining, LoRA
    from fxprune.recover.prune_and_recover import PrunedAndRecovered, prune_and_recover
    from fxprune.recover.recover import Recovery, recover
    from fxprune.recover.settings import Training
    from fxprune.result import PruneResult
    from fxprune.rewrite.rewrite import rewrite
    from fxprune.select.budget import Budget
    from fxprune.select.depth import Depth
    from fxprune.select.latency import LatencyTable
    from fxprune.select.schedule import Gradual
    from fxprune.select.select import select
    from fxprune.serve.export import export
    from fxprune.stream import propagate  # type: ignore[no-redef]
    from fxprune.trace import Traced, trace

__version__ = "0.1.0"
# What most programs need. The other names above are for the rest: values that functions return,
# options of recovery, and the criteria, which are all in fxprune.criteria.
__all__ = [
    "Budget",
    "Depth",
    "FxpruneError",
    "FxpruneWarning",
    "Plan",
    "PruneConfig",
    "PruneResult",
    "Scores",
    "Traced",
    "apply",
    "choose_depth",
    "compensate",
    "discover",
    "estimate",
    "export",
    "find_branches",
    "load",
    "measure_latency",
    "prune",
    "prune_and_recover",
    "recover",
    "register_op",
    "rewrite",
    "save",
    "select",
    "shrink",
    "trace",
    "verify",
]


# What the imports above say, for when they are not made.
_HOMES = {
    "fxprune.ops.op": "register_op",
    "fxprune.branches": "Branches Unit bypass find_branches",
    "fxprune.compensate": "CompensationReport compensate",
    "fxprune.config": "PruneConfig",
    "fxprune.criteria": (
        "FLAP OBS PPL REAP ActivationNorm AngularDistance BlockInfluence Criterion DepthCriterion "
        "ElementCriterion ExpertNorm Frequency InputCriterion Magnitude PeakToPeak Random Taylor "
        "WandaSP"
    ),
    "fxprune.depth": "Removal choose_depth score_units",
    "fxprune.errors": "FxpruneError FxpruneWarning",
    "fxprune.groups.dependency": "DependencyGraph discover",
    "fxprune.groups.group": "Group Site",
    "fxprune.hf.adapter": "shrink_adapter",
    "fxprune.hf.folder.apply": "apply",
    "fxprune.hf.folder.checkpoint": "load save",
    "fxprune.hf.folder.weights": "Weights",
    "fxprune.hf.shrink.shrink": "shrink",
    "fxprune.importance": "Scores estimate",
    "fxprune.inspect.explanation": "Explanation",
    "fxprune.inspect.legality": "check_plan legality",
    "fxprune.measure.latency": "measure_latency",
    "fxprune.measure.latency_report": "LatencyReport",
    "fxprune.plan": "Plan",
    "fxprune.proof.oracle": "VerifyReport verify",
    "fxprune.prune": "prune",
    "fxprune.recover.callback": "PruningCallback",
    "fxprune.recover.gradual": "GradualPruner",
    "fxprune.recover.methods": "Distillation FullTraining LoRA",
    "fxprune.recover.prune_and_recover": "PrunedAndRecovered prune_and_recover",
    "fxprune.recover.recover": "Recovery recover",
    "fxprune.recover.settings": "Training",
    "fxprune.result": "PruneResult",
    "fxprune.rewrite.rewrite": "rewrite",
    "fxprune.select.budget": "Budget",
    "fxprune.select.depth": "Depth",
    "fxprune.select.latency": "LatencyTable",
    "fxprune.select.schedule": "Gradual",
    "fxprune.select.select": "select",
    "fxprune.serve.export": "export",
    "fxprune.stream": "propagate",
    "fxprune.trace": "Traced trace",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOME]


class _Package(types.ModuleType):
    """Keeps ``fxprune.trace`` the function, which importing the package of that name would hide."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
