"""A model on its device and in its dtype, ready to run."""

from __future__ import annotations

import torch

from fxprune.errors import FxpruneError, ModelError
from fxprune.hf.open.architecture import is_causal
from fxprune.hf.open.models import LoadedModel, load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None for None.

    Raises:
        ModelError: it is none that weights have here.
    """
    if name is not None and name not in DTYPES:
        raise ModelError(f"there is no dtype {name!r}: take {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def check_device(name: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        FxpruneError: it cannot.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise FxpruneError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error


def load(spec: str, device: str = "cpu", dtype: torch.dtype | None = None) -> LoadedModel:
    """Load a model with its weights onto a device, in a dtype if one is given.

    Raises:
        ModelError: it cannot be loaded, or is a language model without a tokenizer.
    """
    loaded = load_model(spec)
    if loaded.tokenizer is None and is_causal(loaded.config):
        raise ModelError(f"{spec} has no tokenizer; save it there with save_pretrained")
    loaded.model.to(device=device, dtype=dtype)
    return loaded
