"""A model without its weights, and where those are, for what runs piece by piece."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.errors import CheckpointError, ModelError
from fxprune.hf.folder import checkpoint, shards
from fxprune.hf.folder.module_folder import blank_module
from fxprune.hf.folder.opened import config_of, opened
from fxprune.hf.folder.weights import Weights
from fxprune.hf.open import architecture
from fxprune.hf.open.models import LoadedModel, fetch, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def blank(spec: str | Path, *, weights: bool = True) -> LoadedModel:
    """A model of transformers without weights, on ``meta``, with its tokenizer.

    Args:
        spec: what :func:`fxprune.hf.folder.opened.opened` takes.
        weights: see that they are there, and not pickled.

    Raises:
        ModelError: it cannot be found or read.
        CheckpointError: it holds a graph, or has no safetensors.
    """
    folder = Path(spec).expanduser()
    if (folder / checkpoint.FACTS).is_file():
        facts = checkpoint.facts_of(folder)
        if facts.get("holds", "graph") != "module":
            raise CheckpointError(f"{spec} holds a graph, which is pruned in memory alone")
        config = config_of(spec)
        model: nn.Module = blank_module(folder, facts)
        return LoadedModel(model, load_tokenizer(folder), config, folder.resolve().name)
    if not weights:
        return load_model(spec, meta=True)
    home = fetch(spec)
    shards.shards(home)
    found = load_model(spec, meta=True)
    return LoadedModel(found.model, load_tokenizer(home), found.config, found.name)


def with_weights(spec: str | Path) -> LoadedModel:
    """The same with its weights; a language model may have no tokenizer.

    Raises:
        ModelError: it cannot be found or read.
        CheckpointError: a file is damaged.
    """
    folder = Path(spec).expanduser()
    if (folder / checkpoint.FACTS).is_file():
        return opened(spec)
    return load_model(spec)


def twin(model: nn.Module) -> PreTrainedModel:
    """The same model without weights.

    Raises:
        ModelError: it is none of transformers, whose config builds it again.
    """
    if not (architecture.is_transformers(model) and architecture.has_class(model)):
        raise ModelError(
            f"{type(model).__name__} is not a transformers model, which can be built again without "
            "weights: trace it on meta, and give stream= to the single steps"
        )
    config: Any = model.config
    return architecture.build(
        config,
        dtype=model.dtype,  # type: ignore[arg-type]
        architecture=type(model).__name__,
        attn_implementation=config._attn_implementation,
    )


def without_weights(source: Weights) -> LoadedModel:
    """The model that a source of weights is for.

    Raises:
        FxpruneError: it cannot be built.
    """
    if isinstance(source.where, nn.Module):
        made = twin(source.where)
        return LoadedModel(made, None, made.config, type(made).__name__)
    return blank(os.fspath(source.where))


def size_of(spec: str | Path) -> int:
    """Bytes of the weights of a checkpoint.

    Raises:
        CheckpointError: a file is missing.
    """
    folder = Path(spec).expanduser()
    files = shards.shards(folder if folder.is_dir() else fetch(spec))
    if gone := next((file for file in files if not file.is_file()), None):
        raise CheckpointError(f"{gone} is missing; copy or save the folder again")
    return sum(file.stat().st_size for file in files)


def free_memory(device: str | torch.device = "cpu") -> int | None:
    """Bytes that can be had without putting others out; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def too_large(spec: str | Path, device: str | torch.device = "cpu") -> bool:
    """Whether the weights of a checkpoint exceed the memory that is free; says so in one line."""
    try:
        size = size_of(spec)
    except CheckpointError:  # whoever loads it says what is wrong
        return False
    free = free_memory(device)
    where = "memory of the device" if torch.device(device).type == "cuda" else "memory"
    if free is None or size <= free:
        return False
    words = f"{size / 2**30:.1f} GiB of weights, {free / 2**30:.1f} GiB of {where} free"
    print(f"{words}: pruned in pieces (stream=True)", file=sys.stderr, flush=True)
    return True
