"""What architectures of GGUF can say, and which one a pruned decoder is written as."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from fxprune.errors import ServeError
from fxprune.serve.kin import unlike

_ROPES = ("default", "linear", "llama3")
_LAYER = re.compile(r"\.(\d+)\.")
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
# Others whose architecture takes heads that are narrower together than the stream.
_ANY_HEADS = ("mixtral", "qwen3_moe")


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


def kinds(config: Any) -> tuple[str, ...]:
    """Kinds of units that may go, in all layers alike, where only the dense file tells more."""
    found = ["mlp"]
    # Experts in groups, of which some are chosen first, must stay in groups of one size.
    if (getattr(config, "n_group", None) or 1) == 1:
        found.append("expert")
    return (*found, "attention", "query") if config.model_type in _ANY_HEADS else (*found,)


def alike(config: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether nothing tells layers apart, which would have other numbers.

    Args:
        config: of transformers.
        shapes: of all tensors of the model.
    """
    layers: dict[str, dict[str, Sequence[int]]] = {}
    for name, shape in shapes.items():
        if found := _LAYER.search(name):
            layers.setdefault(found[1], {})[name[found.end() :]] = shape
    first, *others = layers.values() or [{}]
    entries = config.to_dict()
    lists = (value for value in entries.values() if isinstance(value, list))
    per_layer = [x for x in lists if len(x) == config.num_hidden_layers]
    patterns = ["pattern", "interval", "every"]
    if entries.get("layer_types") is None:  # which say what windows make of layers
        patterns.append("window")
    counts = (
        value
        for name, value in entries.items()
        if any(word in name for word in patterns) and isinstance(value, int) and value
    )
    even = all(each == first for each in others)
    return even and all(x.count(x[0]) == len(x) for x in per_layer) and not any(counts)


def rope(config: Any) -> dict[str, Any]:
    """The parameters of rotary embeddings."""
    found = getattr(config, "rope_parameters", None) or {}
    return {"rope_type": "default", "rope_theta": 10000.0, **found}
