"""Configs and model classes of transformers: read, chosen, built without weights."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.errors import ModelError
from fxprune.hf.open.quiet import quiet
from fxprune.hf.shrink import layers_apart
from fxprune.hf.shrink.parts import even, stacks_apart, uneven

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Without ``architectures`` in the config: the task a model is most often used for comes first.
_TASKS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_MAPPING",
)


def read_config(path: Path) -> PreTrainedConfig:
    """Read a transformers ``config.json``.

    Raises:
        ModelError: the file is not JSON, names no architecture transformers knows, or has values
            that the architecture refuses.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto import CONFIG_MAPPING

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON ({error}); fetch or write it again"
        ) from error
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str):
        raise ModelError(
            f"{path} has no model_type, so it is not the config of a transformers model"
        )
    known = list(CONFIG_MAPPING.keys())
    if kind not in known:
        close = difflib.get_close_matches(kind, known, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "a newer transformers may know it"
        )
        raise ModelError(f"{path}: transformers knows no architecture {kind!r}; {hint}")
    try:
        with quiet():
            # Infinity and its like are written as objects.
            data = PreTrainedConfig._decode_special_floats(data)
            config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(data)
    except Exception as error:  # each architecture has validators of its own
        raise ModelError(f"{path} is refused by {kind}: {last_line(error)}") from error
    return config


def build(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    architecture: str | None = None,
    apart: bool = True,
) -> PreTrainedModel:
    """A model without weights, on the ``meta`` device, in evaluation mode.

    Its layers have sizes of their own where the config has ``per_layer_config``.

    Args:
        config: its config.
        dtype: of its parameters; by default what the config says.
        attn_implementation: by default transformers' own choice.
        architecture: name of the transformers class; by default read off the config.
        apart: put such layers in place, for a class that does not read the sizes itself.

    Raises:
        ModelError: there is no such class, or it refuses the config.
    """
    cls = model_class(config, architecture)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        with quiet(), torch.device("meta"):
            if apart and uneven(config):
                alike = cls._from_config(even(config), **options)
                cls = layers_apart.apart(cls, stacks_apart(alike, config))
            model = cls._from_config(config, **options)
    except Exception as error:  # whatever a model's constructor may raise
        raise ModelError(f"{cls.__name__} cannot be built: {last_line(error)}") from error
    model.eval()
    built: PreTrainedModel = model
    return built


def model_class(config: PreTrainedConfig, architecture: str | None = None) -> Any:
    """The transformers class for a config: the one it names, else the first that fits by task.

    Raises:
        ModelError: transformers has no such class.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    names = [architecture] if architecture else list(config.architectures or ())
    for name in names:
        cls = getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
    if names:
        raise ModelError(
            f"transformers {transformers.__version__} has no model class {names[0]!r}: "
            "install the version the model was made with, or correct architectures in config.json"
        )
    tasks = list(_TASKS)
    if getattr(config, "is_encoder_decoder", False):
        tasks.insert(0, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")
    elif type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder:
        tasks.insert(0, "MODEL_FOR_MASKED_LM_MAPPING")
    for task in tasks:
        mapping = getattr(modeling_auto, task)
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple | list) else found
    raise ModelError(f"transformers has no model class for {type(config).__name__}")


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether the config's class predicts the next token, so that perplexity means something."""
    return _is_causal_name(model_class(config).__name__)


def is_causal_model(module: nn.Module) -> bool:
    """Whether a module is a transformers model that predicts the next token."""
    return is_transformers(module) and _is_causal_name(type(module).__name__)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module is a transformers model."""
    transformers = sys.modules.get("transformers")  # else it cannot be one
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def has_class(model: nn.Module) -> bool:
    """Whether transformers has the class of a model; it has not if the code came from elsewhere."""
    import transformers

    known = getattr(transformers, type(model).__name__, None)
    return isinstance(known, type) and isinstance(model, known)


def _is_causal_name(name: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def last_line(error: Exception) -> str:
    """What an error says, without the lines that only lead up to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
