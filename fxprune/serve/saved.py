"""From what is on disk to an engine: a pruned folder, or a plan for a dense one."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from torch import fx

from fxprune.branches import bypass
from fxprune.errors import CheckpointError
from fxprune.groups.dependency import discover
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import CONFIG, PLAN
from fxprune.hf.open import architecture
from fxprune.hf.open.models import load_tokenizer
from fxprune.hf.shrink.parts import even
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from fxprune.trace import trace


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str = "transformers-remote",
    **options: Any,
) -> str:
    """Write a folder that :func:`fxprune.save` wrote as an engine reads it.

    Args:
        source: the folder.
        target: the file or folder to write.
        name: of the engine.
        options: those of the engine.

    Returns:
        How to run it, in words.

    Raises:
        CheckpointError: the source is damaged, holds a model that is not of transformers, or is
            what the engine reads already; or the target exists and is something else.
        ServeError: the engine cannot say it, or has no such option.
    """
    source, target, serving = Path(source), Path(target), engine(name)
    pruned = pruned_of(source)
    if name == "transformers-remote" and not isinstance(pruned.model, fx.GraphModule):
        raise CheckpointError(f"{source} is a checkpoint of transformers already")
    return serving.write(pruned, target, **options)


def pruned_of(folder: Path) -> Pruned:
    """What a folder that :func:`fxprune.save` wrote holds.

    Raises:
        CheckpointError: it is damaged, or holds a model that is not of transformers.
    """
    small: Any = checkpoint.load(folder)
    plan = Plan.load(folder / PLAN) if (folder / PLAN).is_file() else None
    if isinstance(small, fx.GraphModule):
        config = architecture.read_config(folder / CONFIG)
        config.architectures = [checkpoint.facts_of(folder)["model"]["class"]]
    else:
        config = even(copy.deepcopy(small.config))
    return Pruned(small, config, plan, load_tokenizer(folder))


def require(name: str, plan: Plan, folder: Path) -> None:
    """Refuse a plan for a dense checkpoint that an engine cannot run the rest of.

    Raises:
        ServeError: it cannot. Gives all reasons.
        PlanError: the plan is for another model.
    """
    serving = engine(name)
    blank = architecture.build(architecture.read_config(folder / CONFIG))
    plan.check_model(blank)
    traced = trace(blank)
    graph = discover(bypass(traced, plan.removed) if plan.removed else traced)
    serving.require(plan, graph)
