"""Folders of LoRA adapters in the form of PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fxprune.errors import CheckpointError, ShrinkError
from fxprune.files import writing
from fxprune.hf.folder.folders import whole

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
Factors = dict[str, torch.Tensor]

_PREFIX = "base_model.model."
_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_B.bias")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and the tensors of an adapter.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not a whole adapter with {CONFIG} and {TENSORS} ({error})"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is damaged; copy or save it again")
    return config, tensors


def factors_of(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Factors]:
    """The factors of each adapted layer, by its name in the model.

    Raises:
        CheckpointError: a layer has one of the two.
        ShrinkError: there is something besides factors of layers.
    """
    found: dict[str, Factors] = {}
    for key, tensor in tensors.items():
        last = next((last for last in _FACTORS if key.endswith(f".{last}")), None)
        if last is None or not key.startswith(_PREFIX):
            raise ShrinkError(
                f"{key} of the adapter is not a factor of a linear layer: not plain LoRA"
            )
        found.setdefault(key[len(_PREFIX) : -len(last) - 1], {})[last] = tensor
    for name, factors in found.items():
        if not factors.keys() >= set(_FACTORS[:2]):
            raise CheckpointError(f"{folder / TENSORS} has one of the two factors of {name} only")
    return found


def write(folder: Path, config: dict[str, Any], found: dict[str, Factors]) -> None:
    """Write an adapter as :func:`read` takes it, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{_PREFIX}{name}.{last}": tensor.contiguous()
        for name, factors in found.items()
        for last, tensor in factors.items()
    }
    with writing(folder), whole(folder, replace=True) as made:
        save_file(tensors, made / TENSORS, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (made / CONFIG).write_text(text, encoding="utf-8")
