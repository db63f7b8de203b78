"""What architectures of GGUF can say, and which one a pruned decoder is written as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from fxprune.errors import ServeError
from fxprune.serve.kin import unlike

_ROPES = ("default", "linear", "llama3")
_BRANCHES = ("block", "attention", "mlp")


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        code: its number in GGUF.
        pairs: whether rotary embeddings turn neighbours in a head, where transformers turns halves:
            rows of queries and keys are in that order.
        fused: whether queries, keys and values are one tensor.
        depth: what may go whole.
        uneven: whether each layer has sizes of its own.
        square: whether all heads together are as wide as the stream.
    """

    code: MODEL_ARCH
    pairs: bool = False
    fused: bool = False
    depth: tuple[str, ...] = ("block",)
    uneven: bool = False
    square: bool = False

    @property
    def name(self) -> str:
        """What a file calls it."""
        return gguf.MODEL_ARCH_NAMES[self.code]


LLAMA = Architecture(MODEL_ARCH.LLAMA, pairs=True)
QWEN2 = Architecture(MODEL_ARCH.QWEN2, square=True)
QWEN3 = Architecture(MODEL_ARCH.QWEN3)
DECI = Architecture(MODEL_ARCH.DECI, pairs=True, depth=_BRANCHES, uneven=True)
OPENELM = Architecture(MODEL_ARCH.OPENELM, fused=True, uneven=True)

# Type of a transformers config -> what it is itself.
_OWN = {"llama": LLAMA, "mistral": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}


def own(config: Any) -> Architecture | None:
    """What an unpruned model is written as; None if only its dense file can tell.

    Raises:
        ServeError: llama.cpp would compute something else than the model. Says why.
    """
    found = _OWN.get(config.model_type)
    if found is None:
        return None
    if why := unlike(config, _ROPES):
        raise ServeError(f"llama.cpp cannot run {config.model_type}: {why}")
    if getattr(config, "mlp_bias", False):
        raise ServeError(f"llama.cpp has no place for the mlp_bias of {config.model_type}")
    return found


def uneven(config: Any) -> Architecture | None:
    """What a model is written as whose layers have sizes of their own; None if nothing takes it.

    ``deci`` was made for pruned Llamas, ``openelm`` for tied models with norms of queries and keys.
    """
    if config.model_type != "qwen3":
        return DECI
    return OPENELM if config.tie_word_embeddings else None


def alike(config: Any) -> bool:
    """Whether no entry of a config tells layers apart, which would have other numbers."""
    lists = (value for value in config.to_dict().values() if isinstance(value, list))
    per_layer = (x for x in lists if len(x) == config.num_hidden_layers)
    patterns = ("pattern", "interval", "every", "window")
    counts = (
        value
        for name, value in config.to_dict().items()
        if any(word in name for word in patterns) and isinstance(value, int) and value
    )
    return all(x.count(x[0]) == len(x) for x in per_layer) and not any(counts)


def rope(config: Any) -> dict[str, Any]:
    """The parameters of rotary embeddings."""
    found = getattr(config, "rope_parameters", None) or {}
    return {"rope_type": "default", "rope_theta": 10000.0, **found}
