"""A small random model of a type, and inputs for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tests.classes.config import VOCABULARY, tiny
from tests.zoo import disturb

BATCH, LENGTH = 2, 11
# Special tokens lie outside, see ``config``.
FIRST, LAST = 3, VOCABULARY - 28


def types() -> dict[str, str]:
    """Type of model -> name of its class, for every causal language model of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def loader(model: Any) -> Any:
    """What loads such a model: the automatic class, or its own where that knows no such config."""
    import transformers

    auto = transformers.AutoModelForCausalLM
    return auto if type(model.config) in auto._model_mapping else type(model)


def build(model_type: str) -> Any:
    """The model in evaluation mode, in float32, every value of it disturbed."""
    import transformers

    torch.manual_seed(0)
    config, auto = tiny(model_type), transformers.AutoModelForCausalLM
    known = type(config) in auto._model_mapping  # else it is of a part, as of musicgen's decoder
    make = auto.from_config if known else getattr(transformers, types()[model_type])._from_config
    model = make(config, dtype=torch.float32).eval()
    disturb(model)
    return model


def inputs(model: Any) -> dict[str, Any]:
    """Tokens unlike one another; of a model with several codebooks a row for each.

    Of one that attends to the keys and values of another model, these and states of both.
    """
    rows = BATCH * (getattr(model.config, "num_codebooks", None) or 1)
    generator = torch.Generator().manual_seed(1)
    if "shared_kv_states" in inspect.signature(model.forward).parameters:
        width = model.pre_projection.in_features
        states = torch.randn(rows, LENGTH, width, generator=generator)
        mask = torch.ones(rows, LENGTH, dtype=torch.long)
        mask[0, :2] = 0  # transformers leaves out masks of ones, and then takes the past alone
        keys = _keys(model, rows, generator)
        return {"inputs_embeds": states, "attention_mask": mask, "shared_kv_states": keys}
    return {"input_ids": torch.randint(FIRST, LAST, (rows, LENGTH), generator=generator)}


def _keys(model: Any, rows: int, generator: torch.Generator) -> dict[str, Any]:
    """Keys and values for each kind of layer."""
    kinds = {m.layer_type: m for m in model.modules() if hasattr(m, "num_key_value_groups")}
    sizes = {
        kind: (rows, m.config.num_attention_heads // m.num_key_value_groups, LENGTH, m.head_dim)
        for kind, m in kinds.items()
    }
    return {
        kind: tuple(torch.randn(size, generator=generator) for _ in "kv")
        for kind, size in sizes.items()
    }


def plainly(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs for a call that keeps no cache, which is no output of a graph either."""
    names = inspect.signature(model.forward).parameters
    takes = "use_cache" in names or "kwargs" in names
    configs = (each for each in vars(model.config).values() if hasattr(each, "model_type"))
    caches = any(getattr(each, "use_cache", False) for each in (model.config, *configs))
    return {**given, "use_cache": False} if caches and takes else dict(given)
