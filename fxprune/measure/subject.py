"""From what a user types to a model with its tokenizer, ready to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import fx, nn

from fxprune.errors import EvaluationError, ModelError
from fxprune.hf.folder import checkpoint
from fxprune.hf.folder.graph_folder import CONFIG
from fxprune.hf.open.architecture import is_causal, model_class, read_config
from fxprune.hf.open.load import load
from fxprune.hf.open.models import LoadedModel, load_config, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig


def open_subject(
    spec: str | Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> LoadedModel:
    """Open a dense model, a shrunk one or a pruned graph.

    Args:
        spec: what :func:`fxprune.hf.open.models.resolve` takes, or a folder that
            :func:`fxprune.save` wrote.
        device: where it goes.
        dtype: of the weights; None for what they are saved in.

    Raises:
        ModelError: it cannot be found or read, or has no tokenizer.
        CheckpointError: a file of the folder is damaged, or the original is needed to open it.
        EvaluationError: it does not predict the next token, or a dtype is asked of a graph.
    """
    folder = Path(spec).expanduser()
    if not (folder / checkpoint.FACTS).is_file():
        _check_causal(spec, load_config(spec))
        return load(str(spec), device, dtype)
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"{spec} holds a graph of a model that is not of transformers: open it in Python with "
            "fxprune.load(path, model=...) and measure it with fxprune.measure.evaluate"
        )
    config = read_config(folder / CONFIG)
    _check_causal(spec, config)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ModelError(f"{spec} has no tokenizer; save it there with save_pretrained")
    model = checkpoint.load(folder, device=device)
    if isinstance(model, fx.GraphModule):
        if dtype is not None:
            raise EvaluationError(f"{spec} holds a graph, which runs in the dtype it was saved in")
    else:
        cast("nn.Module", model).to(dtype=dtype)
    return LoadedModel(model, tokenizer, config, folder.resolve().name)


def _check_causal(spec: str | Path, config: PreTrainedConfig) -> None:
    if not is_causal(config):
        raise EvaluationError(
            f"{spec}: {model_class(config).__name__} is not a causal language model, so it has "
            "neither perplexity nor tasks nor generation to measure"
        )
