"""Which transformers models compute what Llama computes, so that engines may run them as such."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

# Types whose layers are Llama's if their config asks for nothing else.
_TYPES = ("llama", "mistral", "qwen2", "seed_oss", "internlm3", "iquestcoder")
_ROPES = ("default", "llama3")


def unlike_llama(config: Any) -> str:
    """What a model has that Llama has not; "" if there is no such thing.

    Sizes and biases are not looked at: tensors tell those.

    Args:
        config: of transformers.
    """
    if config.model_type not in _TYPES:
        return f"{config.model_type} is none of {', '.join(_TYPES)}"
    return unlike(config, _ROPES)


def unlike(config: Any, ropes: Collection[str]) -> str:
    """What of activations, rotary embeddings and windows differs from Llama; "" if nothing does.

    Args:
        config: of transformers, of a type whose layers are Llama's otherwise.
        ropes: types of rotary embeddings that are known.
    """
    if config.hidden_act not in ("silu", "swish"):
        return f"its MLPs have the activation {config.hidden_act}, and not silu"
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") not in ropes:
        return f"its rotary embedding is {rope.get('rope_type')}, and not {' or '.join(ropes)}"
    if rope.get("partial_rotary_factor") not in (None, 1):
        return f"its rotary embedding turns a part of each head, {rope['partial_rotary_factor']}"
    if (window := _window(config)) is not None:
        return f"it has a sliding window of {window}, less than {config.max_position_embeddings}"
    return ""


def _window(config: Any) -> int | None:
    """The sliding window of attention, if there is one that a text can outgrow."""
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None or (types and "sliding_attention" not in types):
        return None
    return window if window < config.max_position_embeddings else None
