"""The zoo: small random models of every architecture fxprune promises to handle.

One table. It parametrises the conformance tests and generates ``docs/conformance.md``. The groups
a model must have were derived by hand from its architecture, not read off fxprune:

* ``mlp``: the hidden units of each feed-forward layer (gate, up and down share them);
* ``attention``: KV heads with their query heads, one group per layer, size = number of KV heads;
  where something is added to the scores head by head and shared (T5's position bias, BLOOM's
  ALiBi), all layers that share it are one group;
* ``query``: query heads per KV head, where there are several;
* ``head_dim``: value/output dims of each layer, and query/key dims (all layers share the rotary
  frequencies, so rotary pairs are one group for the model). Optional: may be frozen or finer;
* ``channel``: the residual stream, and the channels of convolutions.

So were the residual branches: of each block, in the model's order.

Sizes are distinct from one another and from batch and length wherever the family allows it, so
that a mistaken identity of two axes shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fxprune
from tests.models import Perceptron, PlaneModel, ResidualConvNet, plane_inputs

VOCABULARY, HIDDEN, INNER, HEAD_DIM, LAYERS = 101, 36, 40, 8, 2
EXAMPLE, OTHER = (5, 13), (3, 17)  # (batch, length): to trace with, and another to run with

Inputs = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]
Groups = Mapping[str, Mapping[int, int]]
"""For each kind: size of a group -> how many groups of that size."""


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: of the entry, also its test id.
        make: the model for an attention backend, weights as initialised.
        expected: the groups that must be found and be prunable.
        backends: attention implementations the family has.
        inputs: kind of input: ``tokens``, ``pairs`` (encoder and decoder), ``planes`` (positions in
            two dimensions and a mask), ``image``, ``features``.
        optional: kinds in ``expected`` that may be absent, frozen or finer.
        frozen_ok: kinds that may be frozen, and why.
        blocks: for each block that can be removed, the kinds of its residual branches.
    """

    name: str
    make: Callable[[str], nn.Module]
    expected: Groups
    backends: tuple[str, ...] = ("eager", "sdpa")
    inputs: str = "tokens"
    optional: tuple[str, ...] = ("head_dim",)
    frozen_ok: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[tuple[str, ...], ...] = (("attention", "mlp"),) * LAYERS

    def build(self, attention: str = "eager") -> nn.Module:
        """The model in eval mode, its values disturbed (see :func:`disturb`)."""
        torch.manual_seed(0)
        model = self.make(attention).eval()
        disturb(model)
        return model

    def example(self, batch: int = EXAMPLE[0], length: int = EXAMPLE[1]) -> Inputs:
        """Positional and keyword inputs of that size (images have a size of their own).

        One of the two is empty.
        """
        generator = torch.Generator().manual_seed(1000 * batch + length)

        def tokens(length: int) -> torch.Tensor:
            return torch.randint(VOCABULARY, (batch, length), generator=generator)

        if self.inputs == "image":
            return (torch.randn(batch, 3, 16, 16, generator=generator),), {}
        if self.inputs == "features":
            return (torch.randn(batch, 20, generator=generator),), {}
        if self.inputs == "pairs":
            return (), {"input_ids": tokens(length), "decoder_input_ids": tokens(length - 6)}
        if self.inputs == "planes":
            ids = tokens(length)
            rows = [plane_inputs(row[None], length - 2 - i) for i, row in enumerate(ids)]
            positions, masks = (torch.cat(each) for each in zip(*rows, strict=True))
            return (), {"input_ids": ids, "position_ids": positions, "attention_mask": masks}
        return (), {"input_ids": tokens(length)}


@torch.no_grad()
def disturb(model: nn.Module, seed: int = 0) -> None:
    """Give every value of a model weight, so that the oracle sees all of it.

    Fresh models are blind spots: biases are 0, norms are 1, and weights so small that attention is
    uniform. Matrices get the scale that keeps activations near 1; vectors and running statistics
    get noise. Integer buffers and rotary frequencies are left alone.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    for parameter in model.parameters():
        if parameter.ndim > 1 and parameter.shape[0] > 1:
            inputs = parameter.shape[-1] if parameter.ndim == 3 else parameter[0].numel()
            parameter.copy_(noise(parameter) * inputs**-0.5)
        else:
            parameter.add_(0.3 * noise(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.3 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(torch.exp(0.3 * noise(buffer)))


def _hf(cls: str, config: str, **options: Any) -> Callable[[str], nn.Module]:
    """A transformers model built from its config alone."""

    def make(attention: str) -> nn.Module:
        import transformers  # it takes seconds

        settings = getattr(transformers, config)(**options)
        settings.use_cache = False
        settings._attn_implementation = attention
        return getattr(transformers, cls)._from_config(settings)

    return make


# hidden_size is not heads * head_dim where the family has a head_dim of its own.
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_HEAD_DIM = {**_LLAMA, "hidden_size": 6 * HEAD_DIM}
del _NO_HEAD_DIM["head_dim"]
_MHA = {**_NO_HEAD_DIM}
del _MHA["num_key_value_heads"]

_GROUPED: Groups = {
    "mlp": {40: 2},
    "attention": {3: 2},
    "query": {2: 2},
    "head_dim": {4: 1, 8: 2},
    "channel": {36: 1},
}
_MULTI_HEAD: Groups = {
    "mlp": {40: 2},
    "attention": {6: 2},
    "head_dim": {8: 4},
    "channel": {48: 1},
}
_WIDE: Groups = {**_GROUPED, "channel": {48: 1}}
# Half of each head is rotary: two pairs, shared by all layers, and four dims of each layer's own.
_HALF_ROTARY = {2: 1, 4: 2, 8: 2}

ZOO: tuple[Entry, ...] = (
    Entry("llama", _hf("LlamaForCausalLM", "LlamaConfig", **_LLAMA), _GROUPED),
    Entry("mistral", _hf("MistralForCausalLM", "MistralConfig", **_LLAMA), _GROUPED),
    Entry("qwen2", _hf("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA), _GROUPED),
    Entry("qwen3", _hf("Qwen3ForCausalLM", "Qwen3Config", **_LLAMA), _GROUPED),
    Entry(
        "gemma2",
        _hf("Gemma2ForCausalLM", "Gemma2Config", query_pre_attn_scalar=8, **_LLAMA),
        _GROUPED,
        backends=("eager",),
    ),
    Entry(
        "gemma3",
        _hf(
            "Gemma3ForCausalLM",
            "Gemma3TextConfig",
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=10,
            **_LLAMA,
        ),
        # Local and global layers have rotary frequencies of their own.
        {**_GROUPED, "head_dim": {4: 2, 8: 2}},
    ),
    Entry("phi3", _hf("Phi3ForCausalLM", "Phi3Config", **_NO_HEAD_DIM), _WIDE),
    Entry(
        "gpt2",
        _hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=VOCABULARY,
            n_embd=48,
            n_inner=INNER,
            n_layer=LAYERS,
            n_head=6,
            n_positions=64,
        ),
        _MULTI_HEAD,
    ),
    Entry(
        "gpt_neox",
        _hf("GPTNeoXForCausalLM", "GPTNeoXConfig", rotary_pct=0.5, **_MHA),
        {**_MULTI_HEAD, "head_dim": _HALF_ROTARY},
    ),
    Entry(
        "opt",
        _hf("OPTForCausalLM", "OPTConfig", ffn_dim=INNER, word_embed_proj_dim=48, **_MHA),
        _MULTI_HEAD,
    ),
    Entry(
        "bloom",
        _hf(
            "BloomForCausalLM",
            "BloomConfig",
            vocab_size=VOCABULARY,
            hidden_size=48,
            n_layer=2,
            n_head=4,
        ),
        {
            "mlp": {4 * 48: 2},
            "attention": {4: 1},  # ALiBi is shared by all layers
            "head_dim": {12: 2},  # query, key and value are one stacked axis
            "channel": {48: 1},
        },
        backends=("eager",),
    ),
    Entry(
        "falcon_multi_query",
        _hf(
            "FalconForCausalLM",
            "FalconConfig",
            multi_query=True,
            new_decoder_architecture=False,
            ffn_hidden_size=INNER,
            **_MHA,
        ),
        # All heads stand on one axis of (6 + 1 + 1) * 8, so value dims are rotary dims too.
        {"mlp": {40: 2}, "query": {6: 2}, "head_dim": {4: 1}, "channel": {48: 1}},
    ),
    Entry(
        "falcon_grouped",
        _hf(
            "FalconForCausalLM",
            "FalconConfig",
            num_kv_heads=3,
            new_decoder_architecture=True,
            ffn_hidden_size=INNER,
            **_MHA,
        ),
        {**_WIDE, "head_dim": {4: 1}},
    ),
    Entry(
        "glm",
        # Rotary pairs are interleaved, (pairs x 2), so heads are wider to have more than 2 pairs.
        _hf("GlmForCausalLM", "GlmConfig", **{**_LLAMA, "head_dim": 16}),
        {**_GROUPED, "head_dim": {4: 1, 8: 2, 16: 2}},
    ),
    Entry(
        "stablelm",
        _hf(
            "StableLmForCausalLM",
            "StableLmConfig",
            partial_rotary_factor=0.5,
            use_qkv_bias=True,
            **_NO_HEAD_DIM,
        ),
        {**_WIDE, "head_dim": _HALF_ROTARY},
    ),
    Entry(
        "mixtral",
        _hf(
            "MixtralForCausalLM",
            "MixtralConfig",
            num_local_experts=4,
            num_experts_per_tok=2,
            **_LLAMA,
        ),
        {**_GROUPED, "expert": {4: 2}},
    ),
    Entry(
        "t5",
        _hf(
            "T5ForConditionalGeneration",
            "T5Config",
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=HEAD_DIM,
            d_ff=INNER,
            num_layers=LAYERS,
            num_heads=6,
            decoder_start_token_id=0,
        ),
        {
            "mlp": {40: 4},
            "attention": {6: 3},  # encoder, decoder, cross: the position bias joins their layers
            "head_dim": {8: 12},
            "channel": {36: 1},  # encoder and decoder share it through the embedding
        },
        inputs="pairs",
        # The decoder's blocks attend to themselves and to the encoder.
        blocks=(("attention", "mlp"),) * LAYERS + (("attention", "attention", "mlp"),) * LAYERS,
    ),
    Entry("bert", _hf("BertForMaskedLM", "BertConfig", **_MHA), _MULTI_HEAD),
    Entry(
        "distilbert",
        _hf(
            "DistilBertForMaskedLM",
            "DistilBertConfig",
            vocab_size=VOCABULARY,
            dim=48,
            hidden_dim=INNER,
            n_layers=LAYERS,
            n_heads=6,
            max_position_embeddings=64,
        ),
        _MULTI_HEAD,
    ),
    Entry(
        "vit",
        _hf(
            "ViTForImageClassification",
            "ViTConfig",
            hidden_size=48,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            image_size=16,
            patch_size=4,
            num_labels=7,
        ),
        _MULTI_HEAD,
        inputs="image",
    ),
    Entry(
        "chatglm_block",
        PlaneModel,
        {
            "mlp": {40: 2},
            "attention": {6: 2},
            "head_dim": {2: 1, 8: 2},  # both halves turn with the same two frequencies
            "channel": {36: 1},
        },
        inputs="planes",
    ),
    Entry(
        "resnet",
        lambda attention: ResidualConvNet(),
        {
            "mlp": {21: 1},
            # Every convolution's channels: the two residual streams (12 and 16), and inside the
            # branches 10, 14 (depthwise), 18, and 2 groups of 11 in and 13 out.
            "channel": {12: 1, 16: 1, 10: 1, 14: 1, 18: 1, 2: 1, 11: 1, 13: 1},
        },
        backends=("eager",),
        inputs="image",
        blocks=(("other",),) * 3,  # the downsampling block has no identity to fall back to
    ),
    Entry(
        "perceptron",
        lambda attention: Perceptron(),
        {"mlp": {40: 1, 24: 1}},
        backends=("eager",),
        inputs="features",
        blocks=(),
    ),
)

BY_NAME: dict[str, Entry] = {entry.name: entry for entry in ZOO}
CASES: tuple[tuple[str, str], ...] = tuple(
    (entry.name, attention) for entry in ZOO for attention in entry.backends
)
# Their like is in the table (llama, stablelm, bert), so their tests are slow.
ALIKE = frozenset({"mistral", "qwen2", "distilbert"})


@functools.cache
def built(name: str, attention: str) -> nn.Module:
    """The model, built once per process. Do not change it."""
    return BY_NAME[name].build(attention)


@functools.cache
def traced(name: str, attention: str) -> fxprune.Traced:
    """The model traced with its example, once per process."""
    return fxprune.trace(built(name, attention), *BY_NAME[name].example())
