"""A pruned decoder as engines see it: layers with their sizes, and tensors by their usual names.

The names are those of transformers' Llama, which the engines' own tables are keyed by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import ServeError
from fxprune.hf.shrink.fill import named_tensors
from fxprune.serve.engine import Pruned

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class Layer:
    """What is left of a layer.

    Attributes:
        number: in the pruned model.
        path: in the model that was read, whose layers may have other numbers.
        heads: query heads; 0 without attention.
        kv_heads: key/value heads; 0 without attention.
        width: units of the MLP; 0 without one.
        tensors: by their names in the layer, such as ``self_attn.q_proj.weight``.
    """

    number: int
    path: str
    heads: int
    kv_heads: int
    width: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Decoder:
    """What is left of a decoder.

    Attributes:
        config: of the original.
        hidden: channels of the residual stream.
        head_dim: channels of a head.
        layers: those of which something is left, in order.
        tensors: those outside of layers: ``model.embed_tokens.weight``, ``model.norm.weight`` and,
            where it is not tied to the embedding, ``lm_head.weight``.
    """

    config: Any
    hidden: int
    head_dim: int
    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]

    @property
    def even(self) -> bool:
        """Whether all layers have the same sizes, and both branches."""
        sizes = {(each.heads, each.kv_heads, each.width) for each in self.layers}
        return len(sizes) == 1 and all(all(each) for each in sizes)


def decoder_of(pruned: Pruned) -> Decoder:
    """Read the sizes of a pruned decoder off its tensors.

    Args:
        pruned: a graph or a transformers model.

    Raises:
        ServeError: it is no decoder with one list of layers that have Llama's names.
    """
    config = pruned.config
    if config is None:
        raise ServeError("not a transformers model: it has no config to tell an engine from")
    size = head_dim(config)
    inner: dict[int, dict[str, Tensor]] = {}
    outer: dict[str, Tensor] = {}
    for name, tensor in named_tensors(pruned.model).items():
        found = _LAYER.fullmatch(name)
        if found is None:
            outer[name] = tensor
        else:
            inner.setdefault(int(found[1]), {})[found[2]] = tensor
    embedding = outer.get("model.embed_tokens.weight")
    if embedding is None or not inner:
        raise ServeError(
            f"{config.model_type} has no model.embed_tokens and model.layers, as a decoder that "
            "engines know has"
        )
    head = outer.get("lm_head.weight")
    # Values may have been trained apart, whatever the config says.
    if config.tie_word_embeddings and head is not None and _same(head, embedding):
        del outer["lm_head.weight"]
    layers = [_layer(place, n, inner[n], size) for place, n in enumerate(sorted(inner))]
    return Decoder(config, embedding.shape[1], size, tuple(layers), outer)


def _same(head: Tensor, embedding: Tensor) -> bool:
    return head is embedding or head.is_meta or torch.equal(head, embedding)


def head_dim(config: Any) -> int:
    """Channels of a head."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _layer(number: int, original: int, tensors: Mapping[str, Tensor], size: int) -> Layer:
    def rows(name: str) -> int:
        return tensors[name].shape[0] if name in tensors else 0

    heads, kv_heads = (rows(f"self_attn.{x}_proj.weight") // size for x in "qk")
    width = rows("mlp.up_proj.weight")
    return Layer(number, f"model.layers.{original}", heads, kv_heads, width, tensors)
