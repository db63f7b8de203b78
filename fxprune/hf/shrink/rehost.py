"""Classes of transformers that compute the same and refuse less."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import CheckpointError, FxpruneWarning, ModelError
from fxprune.hf.open import architecture
from fxprune.hf.open.quiet import quiet
from fxprune.hf.shrink.fill import fill, misfit, named_tensors
from fxprune.hf.shrink.parts import uneven
from fxprune.hf.shrink.stacks import Names
from fxprune.trace.inputs import from_config
from fxprune.trace.modes import evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Mistral without its window is Llama, and takes a number of heads that does not divide the width.
_HOSTS = {"LlamaForCausalLM": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None})}


def acceptable(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or one of another class that gives bit-equal logits, if its own refuses it.

    Tensors are shared.

    Raises:
        CheckpointError: no class takes the config (says what it refuses).

    Warns:
        FxpruneWarning: it is another class.
    """
    refused = refusal(model)
    if not refused:
        return model
    advice = (
        "select with multiple_of=, let another layer go, or see fxprune.legality; the graph can be "
        "saved in any case"
    )
    host = _HOSTS.get(type(model).__name__)
    if host is None or uneven(model.config):
        raise CheckpointError(
            f"{type(model.config).__name__} refuses the smaller sizes ({refused}): {advice}"
        )
    other = _hosted(model, *host)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if other is None or not (on_meta or _same(model, other)):
        raise CheckpointError(
            f"{type(model.config).__name__} refuses the smaller sizes ({refused}), and "
            f"{host[0]} does not compute the same: {advice}"
        )
    warnings.warn(
        f"saved as {host[0]}, whose logits are bit-equal: {type(model.config).__name__} refuses "
        f"the smaller sizes ({refused})",
        FxpruneWarning,
        stacklevel=2,
    )
    return other


def refusal(model: PreTrainedModel) -> str:
    """What the validators of a config have against it; "" if nothing."""
    config = model.config
    try:
        with quiet():
            again = type(config).from_dict(config.to_dict())
    except Exception as error:  # each architecture has validators of its own
        return architecture.last_line(error)
    return _other(config.to_dict(), again.to_dict())


def _other(before: dict[str, Any], after: dict[str, Any], inside: str = "") -> str:
    """The first entry that is another one after reading, in words; "" if none is."""
    for name, value in before.items():
        new = after.get(name, value)
        if new == value or name == "use_cache":  # which is for the caller to say, and no size
            continue
        if isinstance(value, dict) and isinstance(new, dict):
            if said := _other(value, new, f"{inside}{name}."):
                return said
        else:
            return f"{inside}{name} {value!r} becomes {new!r}"
    return ""


def _hosted(
    model: PreTrainedModel, cls: str, config_class: str, values: dict[str, Any]
) -> PreTrainedModel | None:
    import transformers

    make: Any = getattr(transformers, config_class)
    known = make().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    given = {k: v for k, v in model.config.to_dict().items() if k in known}
    try:
        config = make(**(given | values))
        other = architecture.build(
            config,
            dtype=model.dtype,
            architecture=cls,
            attn_implementation=model.config._attn_implementation,
        )
    except (ModelError, ValueError, TypeError):
        return None
    tensors, names = named_tensors(model), Names(())
    if tensors.keys() != named_tensors(other).keys() or misfit(other, tensors, names):
        return None
    fill(other, tensors, names)
    other.generation_config = copy.deepcopy(model.generation_config)
    other.train(model.training)
    return other


@torch.no_grad()
def _same(one: PreTrainedModel, two: PreTrainedModel) -> bool:
    inputs = from_config(one)
    with evaluation(one), evaluation(two):
        return torch.equal(one(**inputs).logits, two(**inputs).logits)
