"""llama.cpp and what is built on it (Ollama, LM Studio): GGUF files.

Layers of their own sizes go into the architecture ``deci``, which llama.cpp has for NVIDIA's
pruned Llamas (Bercovich et al. 2024, "Puzzle"), or into ``openelm`` (Mehta et al. 2024).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.errors import ServeError
from fxprune.select.target import Target
from fxprune.serve.decoder import Decoder, Layer, decoder_of
from fxprune.serve.engine import Engine, Pruned
from fxprune.serve.gguf import architectures, file, vocabulary
from fxprune.serve.gguf.architectures import Architecture
from fxprune.serve.gguf.file import Blank, Entry, Metadata, integers

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_BLOCK = 32  # of the quantised types that take the fewest


class LlamaCpp(Engine):
    """Writes GGUF files."""

    name = "llama.cpp"

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`."""
        config = getattr(graph.traced.module, "config", None)
        if config is None:
            raise ServeError(f"{self.name}: not a transformers model")
        own = architectures.own(config)
        form = architectures.uneven(config)
        return Target(
            self.name,
            kinds=("mlp", "attention", "query", "channel"),
            even=form is None,
            prefers={"mlp": 256},
            depth=(form or own).depth,
            biases=form is not architectures.OPENELM,
        )

    def write(
        self,
        pruned: Pruned,
        path: Path,
        *,
        like: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        progress: bool = False,
        **options: Any,
    ) -> str:
        """Write a GGUF file.

        Args:
            pruned: the model.
            path: the file.
            like: a GGUF of the dense model, of which everything but sizes and values is taken, the
                tokenizer included. Without it the tokenizer must be one that can be told.
            dtype: of matrices: ``f32``, ``f16``, ``bf16``, ``q8_0``; ``auto`` as the values are.
            progress: show a progress bar.
            options: none.

        Raises:
            ServeError: llama.cpp cannot say it; nothing is written.
        """
        if options:
            raise ServeError(f"{self.name} has no option {next(iter(options))!r}")
        config = pruned.config
        own = architectures.own(config)
        decoder = decoder_of(pruned)
        form = own if _fits(decoder, own) else architectures.uneven(config)
        if form is None:
            raise ServeError(
                f"{self.name}: {config.model_type} without tied embeddings takes layers of one "
                "size; plan with ranking='uniform', or for blocks"
            )
        kind = file.kind_of(dtype, decoder.tensors["model.embed_tokens.weight"])
        written = Written(
            decoder, form, wide=_BLOCK if kind is gguf.GGMLQuantizationType.Q8_0 else 1
        )
        tensors = dict(written.tensors())
        base = vocabulary.of(pruned) if like is None else dense(like, own, config)
        base = file.renamed(base, own.name, form.name)
        file.write(path, form.name, base | written.metadata(), tensors, kind, progress)
        return f"run it with llama-cli -m {path}, or any program built on llama.cpp"


ENGINE = LlamaCpp()


def _fits(decoder: Decoder, form: Architecture) -> bool:
    """Whether the architecture of the dense model takes what is left."""
    wide = decoder.layers[0].heads * decoder.head_dim
    return decoder.even and not (form.square and wide != decoder.hidden)


class Written:
    """A decoder in an architecture of GGUF.

    Args:
        decoder: the decoder.
        form: the architecture.
        wide: units of an MLP that only stands for one.
    """

    def __init__(self, decoder: Decoder, form: Architecture, wide: int = 1) -> None:
        self.decoder, self.form, self.wide = decoder, form, wide
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
                yield self._named(name), _values(outer[name])
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
            turned = {"q_proj": heads, "k_proj": kv_heads}.get(part) if self.form.pairs else None
            blank = _values(tensor, turned)
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


def dense(like: str | os.PathLike[str], own: Architecture, config: Any) -> Metadata:
    """The metadata of a dense model's file.

    Args:
        like: the file.
        own: the architecture that it must have.
        config: of the dense model, whose numbers it must have.

    Raises:
        ServeError: it is of another model.
    """
    entries = file.metadata(file.opened(like))
    found = entries.get("general.architecture", Entry(None, gguf.GGUFValueType.STRING)).value
    if found != own.name:
        raise ServeError(f"{like} is of the architecture {found}, and the model is {own.name}")
    expected = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": architectures.rope(config)["rope_theta"],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    for key, value in expected.items():
        there = entries.get(f"{own.name}.{key}")
        if there is not None and not np.isclose(there.value, value, rtol=1e-5):
            raise ServeError(f"{like} is of another model: {key} is {there.value}, here {value}")
    tokens = entries.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens.value) > config.vocab_size:
        raise ServeError(f"{like} has {len(tokens.value)} tokens, the model {config.vocab_size}")
    return {key: each for key, each in entries.items() if key != "general.size_label"}


def halves_to_pairs(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of queries or keys in the order in which llama.cpp turns them."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def _values(tensor: Tensor, heads: int | None = None) -> Blank:
    """The values of a tensor; of ``heads`` heads in the order of pairs."""

    def make() -> NDArray[Any]:
        values = tensor.detach().to(device="cpu", dtype=torch.float32).numpy()
        return values if heads is None else halves_to_pairs(values, heads)

    return Blank(tuple(tensor.shape), make)


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
