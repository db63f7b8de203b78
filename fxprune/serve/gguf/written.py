"""A pruned decoder as the tensors and the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from fxprune.errors import ServeError
from fxprune.serve.decoder import Decoder, Layer
from fxprune.serve.gguf import architectures
from fxprune.serve.gguf.architectures import Architecture
from fxprune.serve.gguf.file import Blank, Entry, Metadata, integers

_BLOCK = 32  # of the quantised types that take the fewest


def form_of(decoder: Decoder, own: Architecture) -> Architecture:
    """What a pruned decoder is written as: what it was, where that takes the sizes.

    Args:
        decoder: the decoder.
        own: the architecture of the dense model.

    Raises:
        ServeError: nothing takes them.
    """
    wide = decoder.layers[0].heads * decoder.head_dim
    if decoder.even and not (own.square and wide != decoder.hidden):
        return own
    found = architectures.uneven(decoder.config)
    if found is None:
        raise ServeError(
            f"llama.cpp: {decoder.config.model_type} without tied embeddings takes layers of one "
            "size; plan with ranking='uniform', or for blocks"
        )
    return found


class Written:
    """A decoder in an architecture of GGUF.

    Args:
        decoder: the decoder.
        form: the architecture.
        kind: type of its matrices.
        values: gives those of a tensor by its name in the model that was read; of the decoder
            itself, if left out.
        paired: whether rows of queries and keys come in pairs already.
    """

    def __init__(
        self,
        decoder: Decoder,
        form: Architecture,
        kind: Kind,
        values: Callable[[str], NDArray[Any]] | None = None,
        paired: bool = False,
    ) -> None:
        self.decoder, self.form = decoder, form
        self.wide = wide = _BLOCK if kind is Kind.Q8_0 else 1  # an MLP that only stands for one
        self.values, self.paired = values, paired
        self.names = gguf.get_tensor_name_map(form.code, len(decoder.layers))
        self.heads = [self._heads(layer) for layer in decoder.layers]
        self.widths = [layer.width or wide for layer in decoder.layers]

    def _heads(self, layer: Layer) -> tuple[int, int]:
        # Without attention in the first layer llama.cpp does not load: a head of zeros is there.
        return (layer.heads, layer.kv_heads) if layer.heads or layer.number else (1, 1)

    def metadata(self) -> Metadata:
        """The sizes, and what else the config says."""
        config, decoder, name = self.decoder.config, self.decoder, self.form.name
        rope = architectures.rope(config)
        found = {
            "block_count": integers(len(decoder.layers)),
            "context_length": integers(int(config.max_position_embeddings)),
            "embedding_length": integers(decoder.hidden),
            "vocab_size": integers(decoder.tensors["model.embed_tokens.weight"].shape[0]),
            "attention.head_count": self._numbers([heads for heads, _ in self.heads]),
            "attention.head_count_kv": self._numbers([kv for _, kv in self.heads]),
            "feed_forward_length": self._numbers(self.widths),
            "attention.key_length": integers(decoder.head_dim),
            "attention.value_length": integers(decoder.head_dim),
            "rope.dimension_count": integers(decoder.head_dim),
            "rope.freq_base": Entry(float(rope["rope_theta"]), gguf.GGUFValueType.FLOAT32),
            "attention.layer_norm_rms_epsilon": Entry(
                float(config.rms_norm_eps), gguf.GGUFValueType.FLOAT32
            ),
        }
        if rope["rope_type"] == "linear":
            found["rope.scaling.type"] = Entry("linear", gguf.GGUFValueType.STRING)
            factor = Entry(float(rope["factor"]), gguf.GGUFValueType.FLOAT32)
            found["rope.scaling.factor"] = factor
        return {f"{name}.{key}": entry for key, entry in found.items()}

    def _numbers(self, numbers: list[int]) -> Entry:
        return integers(numbers if self.form.uneven else numbers[0])

    def tensors(self) -> Iterator[tuple[str, Blank]]:
        """All tensors by their names in GGUF.

        Raises:
            ServeError: the architecture has no place for one.
        """
        outer = self.decoder.tensors
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            if name in outer:
                yield self._named(name), self._blank(name, outer[name])
        if architectures.rope(self.decoder.config)["rope_type"] == "llama3":
            yield "rope_freqs.weight", _rope_factors(self.decoder.config)
        for layer in self.decoder.layers:
            for kind, left in (("attention", layer.heads), ("mlp", layer.width)):
                if not left and kind not in self.form.depth:
                    raise ServeError(
                        f"llama.cpp: {self.form.name} takes layers with both branches, and layer "
                        f"{layer.number} has no {kind}"
                    )
            for name, blank in self._layer(layer):
                yield self._named(f"model.layers.{layer.number}.{name}"), blank

    def _named(self, name: str) -> str:
        path, _, end = name.rpartition(".")
        if self.form.fused and path.endswith("qkv_proj"):
            return f"blk.{path.split('.')[2]}.attn_qkv.{end}"
        found: str | None = self.names.get_name(path)
        if found is None:
            raise ServeError(f"llama.cpp: {self.form.name} has no place for {name}")
        return f"{found}.{end}"

    def _layer(self, layer: Layer) -> Iterator[tuple[str, Blank]]:
        heads, kv_heads = self.heads[layer.number]
        fused: dict[str, list[Blank]] = {}
        for name, tensor in layer.tensors.items():
            path, _, end = name.rpartition(".")
            part = path.rpartition(".")[2]
            turns = self.form.pairs and not self.paired
            turned = {"q_proj": heads, "k_proj": kv_heads}.get(part) if turns else None
            blank = self._blank(f"{layer.path}.{name}", tensor, turned)
            if self.form.fused and part in ("q_proj", "k_proj", "v_proj"):
                fused.setdefault(f"self_attn.qkv_proj.{end}", []).append(blank)
            else:
                yield name, blank
        for name, parts in fused.items():
            yield name, _joined(parts)
        hidden, inner = self.decoder.hidden, heads * self.decoder.head_dim
        if heads and not layer.heads:
            yield "input_layernorm.weight", _filled(1, hidden)
            for name, rows in (("q", inner), ("k", inner), ("v", inner)):
                yield f"self_attn.{name}_proj.weight", _filled(0, rows, hidden)
            yield "self_attn.o_proj.weight", _filled(0, hidden, inner)
        if not layer.width:
            # An MLP of no units loads, and then the attention's output is not added to the stream.
            yield "post_attention_layernorm.weight", _filled(1, hidden)
            yield "mlp.gate_proj.weight", _filled(0, self.wide, hidden)
            yield "mlp.up_proj.weight", _filled(0, self.wide, hidden)
            yield "mlp.down_proj.weight", _filled(0, hidden, self.wide)

    def _blank(self, name: str, tensor: Tensor, heads: int | None = None) -> Blank:
        """A tensor to be written; of ``heads`` heads in the order of pairs."""

        def make() -> NDArray[Any]:
            if self.values is None:
                found = tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
            else:
                found = self.values(name)
            return found if heads is None else halves_to_pairs(found, heads)

        return Blank(tuple(tensor.shape), make)


def halves_to_pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys in the order in which llama.cpp turns them."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def pairs_to_halves(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """The opposite of :func:`halves_to_pairs`."""
    split = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def _joined(parts: list[Blank]) -> Blank:
    rows = sum(part.shape[0] for part in parts)
    made: Callable[[], NDArray[Any]] = lambda: np.concatenate([part.make() for part in parts])  # noqa: E731
    return Blank((rows, *parts[0].shape[1:]), made)


def _filled(value: float, *shape: int) -> Blank:
    return Blank(shape, lambda: np.full(shape, value, np.float32))


def _rope_factors(config: Any) -> Blank:
    """What frequencies are divided by (Grattafiori et al. 2024, "The Llama 3 Herd of Models")."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    size = scaled.shape[0]
    plain = architectures.rope(config)["rope_theta"] ** -(np.arange(size) / size)
    factors = (plain / scaled.double().numpy()).astype(np.float32)
    return Blank((size,), lambda: factors)
