"""The config of a model whose blocks differ, in the form of NVIDIA's Nemotron-NAS.

This file needs nothing of fxprune: a copy of it lies beside the weights.
"""

from typing import Any

from transformers.models.llama import LlamaConfig


class Block(dict[str, Any]):
    """A part of a block's description: engines read attributes and write JSON."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _block(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return Block({key: _block(part) for key, part in value.items()})


class NemotronNasConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's, and ``block_configs`` with an entry for each layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [_block(block) for block in block_configs]
