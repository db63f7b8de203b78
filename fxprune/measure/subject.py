"""From what a user types to a model with its tokenizer, ready to be measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.errors import EvaluationError
from fxprune.hf.folder.opened import config_of, opened
from fxprune.hf.open.architecture import is_causal, model_class
from fxprune.hf.open.models import LoadedModel

if TYPE_CHECKING:
    import torch


def open_subject(
    spec: str | Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> LoadedModel:
    """Open a dense model, a shrunk one or a pruned graph.

    Args:
        spec: see :func:`fxprune.hf.folder.opened.opened`.
        device: where it goes.
        dtype: of the weights; None for what they are saved in.

    Raises:
        ModelError: it cannot be found or read, or has no tokenizer, or a dtype is asked of a graph.
        CheckpointError: a file of the folder is damaged, or the original is needed to open it.
        EvaluationError: it does not predict the next token.
    """
    check_subject(spec)
    return opened(spec, device, dtype)


def check_subject(spec: str | Path) -> None:
    """Look at the config of a model before it is opened.

    Raises:
        ModelError: it cannot be found or read.
        EvaluationError: it does not predict the next token.
    """
    config = config_of(spec)
    if not is_causal(config):
        raise EvaluationError(
            f"{spec}: {model_class(config).__name__} is not a causal language model, so it has "
            "neither perplexity nor tasks nor generation to measure"
        )
