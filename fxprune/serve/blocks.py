"""Llama's tensors of a decoder whose blocks differ, each of the size that engines give it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxprune.errors import ServeError
from fxprune.serve.decoder import Decoder, Layer, decoder_of
from fxprune.serve.engine import Pruned

Shape = tuple[int, ...]
_ATTENTION, _MLP = "self_attn.", "mlp."


@dataclass(frozen=True, eq=False)
class Blocks:
    """A decoder with all tensors of the form.

    Attributes:
        decoder: what is left of the model, and what was filled in.
        tensors: by their whole names.
        attention_bias: whether the four Linears of attention have biases.
        mlp_bias: whether the three of MLPs have.
        padded: whether the first layer was given attention that adds nothing.
    """

    decoder: Decoder
    tensors: Mapping[str, Tensor]
    attention_bias: bool
    mlp_bias: bool
    padded: bool


def blocks_of(pruned: Pruned, attends_first: bool) -> Blocks:
    """Read a decoder of Llama's kin, and prove that its tensors have the sizes of the form.

    Where one Linear of a kind has a bias, the others get one of zeros.

    Args:
        pruned: a graph or a transformers model; it may be on ``meta``.
        attends_first: whether the first layer must have attention. One that has none gets one of
            zeros.

    Raises:
        ServeError: heads are missing, or a tensor is, is none of Llama's, or has another size.
    """
    decoder = decoder_of(pruned)
    _check_heads(decoder)
    layers = list(decoder.layers)
    padded = attends_first and not layers[0].heads
    if padded:
        layers[0] = _attending(decoder)
    names = [name for layer in layers for name in layer.tensors if name.endswith(".bias")]
    attention_bias = any(name.startswith(_ATTENTION) for name in names)
    mlp_bias = any(name.startswith(_MLP) for name in names)
    outer = dict(_outer(decoder))
    # Buffers outside of layers, such as frequencies of rotary embeddings, are computed by engines.
    held = dict(pruned.model.named_parameters(remove_duplicate=False))
    tensors = {n: t for n, t in decoder.tensors.items() if n in outer or n in held}
    _check(tensors, outer, "")
    for place, layer in enumerate(layers):
        shapes = dict(_inner(decoder, layer, attention_bias, mlp_bias))
        layers[place] = layer = _filled(layer, shapes)
        _check(layer.tensors, shapes, f"{layer.path}.")
        tensors |= {f"model.layers.{place}.{name}": t for name, t in layer.tensors.items()}
    whole = replace(decoder, layers=tuple(layers))
    return Blocks(whole, tensors, attention_bias, mlp_bias, padded)


def _check_heads(decoder: Decoder) -> None:
    heads = decoder.config.num_attention_heads
    if not any(layer.heads for layer in decoder.layers):
        raise ServeError("no layer has attention left, and one must have")
    for layer in decoder.layers:
        if layer.heads not in (0, heads):
            raise ServeError(
                f"{layer.path} has {layer.heads} query heads, and all {heads} must stay"
            )
        if layer.heads and (not layer.kv_heads or heads % layer.kv_heads):
            raise ServeError(
                f"{layer.path} has {layer.kv_heads} key/value heads, which do not divide "
                f"{heads} query heads"
            )


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], before: str) -> None:
    """Whether there are these tensors and no other; ``before`` stands before their names."""
    for name in tensors:
        if name not in shapes:
            raise ServeError(f"it has {before}{name}, which Llama has not")
    for name, shape in shapes.items():
        if name not in tensors:
            raise ServeError(f"it has no {before}{name}")
        if (found := tuple(tensors[name].shape)) != shape:
            raise ServeError(f"{before}{name} has shape {found}, and {shape} is needed")


def _outer(decoder: Decoder) -> Iterator[tuple[str, Shape]]:
    table = (decoder.tensors["model.embed_tokens.weight"].shape[0], decoder.config.hidden_size)
    yield "model.embed_tokens.weight", table
    yield "model.norm.weight", table[1:]
    if not decoder.config.tie_word_embeddings:
        yield "lm_head.weight", table


def _inner(
    decoder: Decoder, layer: Layer, attention_bias: bool, mlp_bias: bool
) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the tensors of a layer."""
    hidden = decoder.config.hidden_size
    queries, keys = layer.heads * decoder.head_dim, layer.kv_heads * decoder.head_dim
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    if layer.heads:
        yield "input_layernorm.weight", (hidden,)
        yield from _linears(_ATTENTION, rows, hidden, "o_proj", attention_bias)
    if layer.width:
        yield "post_attention_layernorm.weight", (hidden,)
        rows = dict.fromkeys(("gate_proj", "up_proj"), layer.width)
        yield from _linears(_MLP, rows, hidden, "down_proj", mlp_bias)


def _linears(
    part: str, rows: Mapping[str, int], hidden: int, last: str, bias: bool
) -> Iterator[tuple[str, Shape]]:
    for name, count in rows.items():
        yield f"{part}{name}.weight", (count, hidden)
    yield f"{part}{last}.weight", (hidden, next(iter(rows.values())))
    if bias:
        for name, count in {**rows, last: hidden}.items():
            yield f"{part}{name}.bias", (count,)


def _filled(layer: Layer, shapes: Mapping[str, Shape]) -> Layer:
    """A layer with zeros for the biases that it lacks."""
    like = next(iter(layer.tensors.values()))
    zeros = {
        name: like.new_zeros(shape)
        for name, shape in shapes.items()
        if name.endswith(".bias") and name not in layer.tensors
    }
    return replace(layer, tensors={**layer.tensors, **zeros})


def _attending(decoder: Decoder) -> Layer:
    """The first layer, with attention of zeros and one key/value head."""
    first = replace(decoder.layers[0], heads=decoder.config.num_attention_heads, kv_heads=1)
    like = decoder.tensors["model.norm.weight"]
    added = {
        name: torch.ones_like(like) if name == "input_layernorm.weight" else like.new_zeros(shape)
        for name, shape in _inner(decoder, first, False, False)
        if name not in first.tensors
    }
    return replace(first, tensors={**first.tensors, **added})
