"""From a saved graph to a checkpoint of transformers."""

from __future__ import annotations

import os
from pathlib import Path

from torch import fx

from fxprune.errors import CheckpointError
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import CONFIG, PLAN
from fxprune.hf.open import architecture
from fxprune.hf.open.models import load_tokenizer
from fxprune.hf.shrink.shrink import shrink
from fxprune.plan import Plan


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Save a graph that :func:`fxprune.save` wrote as a model of its transformers class.

    Args:
        source: the folder of the graph.
        target: the folder to write; one that fxprune wrote before is replaced.

    Returns:
        The target.

    Raises:
        CheckpointError: the source holds no graph of a transformers model, or is damaged; or the
            target exists and is something else.
        ShrinkError: no config can say the sizes.
    """
    source = Path(source)
    checkpoint.check_target(target)
    small = checkpoint.load(source)
    if not isinstance(small, fx.GraphModule):
        raise CheckpointError(f"{source} is a checkpoint of transformers already")
    plan = Plan.load(source / PLAN)
    model = architecture.build(
        architecture.read_config(source / CONFIG),
        architecture=checkpoint.facts_of(source)["model"]["class"],
    )
    tokenizer = load_tokenizer(source)
    return checkpoint.save(
        shrink(model, plan, small, share=True), target, plan=plan, tokenizer=tokenizer
    )
