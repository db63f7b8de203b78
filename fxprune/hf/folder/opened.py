"""Any model that a user can name: dense, or one that fxprune pruned and saved, in whatever form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import fx, nn

from fxprune.errors import ModelError
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import CONFIG
from fxprune.hf.open.architecture import is_causal, read_config
from fxprune.hf.open.load import load
from fxprune.hf.open.models import LoadedModel, fetch, load_config, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def opened(spec: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Open a dense model, a shrunk one or a pruned graph, with its tokenizer.

    Args:
        spec: what :func:`fxprune.hf.open.models.resolve` takes, or a folder that
            :func:`fxprune.save` wrote.
        device: where it goes.
        dtype: of the weights; None for what they are saved in.

    Raises:
        ModelError: it cannot be found or read, is a language model without a tokenizer, the
            original is needed to open it, or a dtype is asked of a graph.
        CheckpointError: a file of the folder is damaged.
    """
    folder = Path(spec).expanduser()
    if not (folder / checkpoint.FACTS).is_file():
        return load(str(spec), device, dtype)
    config, tokenizer = config_of(spec), load_tokenizer(folder)
    if tokenizer is None and is_causal(config):
        raise ModelError(f"{spec} has no tokenizer; save it there with save_pretrained")
    model = checkpoint.load(folder, device=device)
    if isinstance(model, fx.GraphModule):
        if dtype is not None:
            raise ModelError(f"{spec} holds a graph, which runs in the dtype it was saved in")
    else:
        cast("nn.Module", model).to(dtype=dtype)
    return LoadedModel(model, tokenizer, config, folder.resolve().name)


def config_of(spec: str | Path) -> PreTrainedConfig:
    """The config of such a model, of a graph that of what was pruned first; weights are fetched.

    Raises:
        ModelError: there is none, or no weights.
    """
    folder = Path(spec).expanduser()
    if not (folder / checkpoint.FACTS).is_file():
        config = load_config(spec)
        fetch(spec)
        return config
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{spec} holds a graph of a model that is not of transformers: open it in Python with "
            "fxprune.load(path, model=...)"
        )
    return read_config(folder / CONFIG)
