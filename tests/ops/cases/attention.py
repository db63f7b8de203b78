"""Attention in every make. x has 6 features; q and k heads have 4 units, v heads 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.single import Case, parameter

Mix = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def attention(
    name: str,
    mix: Mix,
    heads: int = 6,
    kv: int = 6,
    axes: dict[str, str] | None = None,
    *,
    head: int = 4,
    value: int = 3,
    extra: Callable[[], dict[str, Any]] = dict,
    **options: Any,
) -> Case:
    """q, k, v as (batch, heads, length, units) into ``mix``, its result into ``o``."""

    def parts() -> dict[str, Any]:
        return {
            "q": nn.Linear(6, heads * head),
            "k": nn.Linear(6, kv * head),
            "v": nn.Linear(6, kv * value),
            "o": nn.Linear(heads * value, 5),
            **extra(),
        }

    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, size)).transpose(1, 2)
            for layer, size in ((m.q, head), (m.k, head), (m.v, value))
        )
        return m.o(mix(m, q, k, v).transpose(1, 2).flatten(2))

    return Case(name, parts, body, {**MULTI_HEAD, **(axes or {})}, **options)


def eager(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(4)).softmax(-1) @ v


def fused(**options: Any) -> Mix:
    return lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def biased(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias)


def repeated(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(m, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


def expanded(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (
        x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], 6, x.shape[2], x.shape[3])
        for x in (k, v)
    )
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def grouped_einsum(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q.unflatten(1, (3, 2))
    scores = torch.einsum("bgrqd,bgkd->bgrqk", q, k).softmax(-1)
    return torch.einsum("bgrqk,bgke->bgrqe", scores, v).flatten(1, 2)


def alibi(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = 2.0 ** -(torch.arange(1, 7) * 8 / 6)
    places = torch.arange(q.shape[2])
    bias = slopes[:, None, None] * (places[None, :] - places[:, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def relative(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(q.shape[2])
    buckets = (places[None, :] - places[:, None]).clamp(-4, 4) + 4
    bias = m.table(buckets).permute(2, 0, 1).unsqueeze(0)
    return ((q @ k.mT) * 0.5 + bias).softmax(-1) @ v


def shaw(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    places = torch.arange(q.shape[2])
    keys = m.table((places[None, :] - places[:, None]).clamp(-4, 4) + 4)
    scores = q @ k.mT + torch.einsum("bhqd,qkd->bhqk", q, keys)
    return scores.softmax(-1) @ v


def talking(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqk,hg->bgqk", q @ k.mT, m.before).softmax(-1)
    return torch.einsum("bgqk,gh->bhqk", scores, m.after) @ v


def linear(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)


def merged(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, _ = q.shape
    q, k, v = (x.reshape(batch * heads, length, x.shape[-1]) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1), q, k.mT, alpha=0.5).softmax(-1)
    return torch.bmm(scores, v).view(batch, heads, length, -1)


def merged_padded(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, _ = q.shape
    q, k, v = (x.reshape(batch * heads, length, x.shape[-1]) for x in (q, k, v))
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None].expand(batch * heads, -1, -1)
    scores = (q @ k.mT).masked_fill(~mask, -9.0).softmax(-1)
    return (scores @ v).view(batch, heads, length, v.shape[-1])


def gated(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(m, q, k, v) * m.gate[:, None, None].sigmoid()


def normed(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(m, m.norm(q), m.norm(k), v)


def rotary(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.arange(q.shape[2])[:, None] * m.frequencies
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    q, k = (x * cos + torch.cat((-x[..., 2:], x[..., :2]), -1) * sin for x in (q, k))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def complex_rotary(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angles = torch.outer(torch.arange(q.shape[2]).float(), m.frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)
    q, k = (
        torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
        for x in (q, k)
    )
    return eager(m, q, k, v)


def latent(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(m.latents, k, v) + q.mean() * 0


def _falcon(m: Any, x: Tensor) -> Tensor:
    blocks = m.qkv(x).unflatten(-1, (3, 4, 4))
    parts = (blocks[..., :-2, :], blocks[..., [-2], :], blocks[..., [-1], :])
    q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in parts)
    return m.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


MULTI_HEAD = {
    "q.weight[0]": "(6 x 4)",
    "k.weight[0]": "(6 x 4)",
    "v.weight[0]": "(6 x 3)",
    "o.weight[1]": "(6 x 3)",
    "q.bias[0]": "(6 x 4)",
}
GROUPED = {
    "q.weight[0]": "(3 x 2 x 4)",
    "k.weight[0]": "(3 x 4)",
    "v.weight[0]": "(3 x 3)",
    "o.weight[1]": "(3 x 2 x 3)",
    "q.bias[0]": "(3 x 2 x 4)",
}
ONE_KEY = {
    "q.weight[0]": "(6 x 4)",
    "k.weight[0]": "4",
    "v.weight[0]": "3",
    "o.weight[1]": "(6 x 3)",
}
ROTARY = {
    "q.weight[0]": "(6 x (2 + 2))",
    "k.weight[0]": "(6 x (2 + 2))",
    "q.bias[0]": "(6 x (2 + 2))",
    "frequencies[0]": "2",
}
PAIRS = dict.fromkeys(("q.weight[0]", "k.weight[0]", "q.bias[0]"), "(6 x 2 x 2!)")


CASES = [
    attention("eager", eager),
    attention("sdpa", fused()),
    attention("sdpa-causal", fused(is_causal=True)),
    attention("sdpa-scale", fused(scale=0.3)),
    attention("sdpa-explicit-none", fused(scale=None, dropout_p=0.0)),
    attention("sdpa-zero-mask", fused(attn_mask=torch.zeros(1, 1, 1, 1))),
    attention("sdpa-gqa", fused(enable_gqa=True), kv=3, axes=GROUPED),
    attention("sdpa-gqa-causal", fused(enable_gqa=True, is_causal=True), kv=3, axes=GROUPED),
    attention("sdpa-mqa", fused(enable_gqa=True), kv=1, axes=ONE_KEY),
    attention("sdpa-mqa-broadcast", fused(), kv=1, axes=ONE_KEY),
    attention("eager-mqa", eager, kv=1, axes=ONE_KEY),
    attention("eager-gqa", repeated, kv=3, axes=GROUPED),
    attention("sdpa-repeat-kv", expanded, kv=3, axes=GROUPED),
    attention("einsum-gqa", grouped_einsum, kv=3, axes=GROUPED),
    attention(
        "head-bias", biased, axes={"bias[0]": "6"}, extra=lambda: {"bias": parameter(6, 1, 1)}
    ),
    attention(
        "head-bias-batch",
        biased,
        axes={"bias[1]": "6"},
        extra=lambda: {"bias": parameter(1, 6, 1, 1)},
    ),
    attention(
        "head-bias-gqa",
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, m.bias, enable_gqa=True),
        kv=3,
        axes={**GROUPED, "bias[0]": "(3 x 2)"},
        extra=lambda: {"bias": parameter(6, 1, 1)},
    ),
    attention("alibi", alibi),
    attention(
        "relative-bias",
        relative,
        axes={"table.weight[1]": "6", "table.weight[0]": "9!"},
        extra=lambda: {"table": nn.Embedding(9, 6)},
        why={"table.weight[0]": "looked up"},
    ),
    attention(
        "relative-keys",
        shaw,
        axes={"table.weight[1]": "4"},
        extra=lambda: {"table": nn.Embedding(9, 4)},
    ),
    attention(
        "talking-heads",
        talking,
        axes={"before[0]": "6", "before[1]": "8", "after[0]": "8", "after[1]": "6"},
        extra=lambda: {"before": parameter(6, 8), "after": parameter(8, 6)},
    ),
    attention("linear-attention", linear, exact=False, normalised=False),
    attention("merged-bmm", merged),
    attention("merged-mask", merged_padded),
    attention("head-gate", gated, axes={"gate[0]": "6"}, extra=lambda: {"gate": parameter(6)}),
    attention(
        "qk-norm",
        normed,
        axes={"norm.weight[0]": "4"},
        extra=lambda: {"norm": nn.RMSNorm(4)},
        exact=False,
    ),
    attention("rotary", rotary, axes=ROTARY, extra=lambda: {"frequencies": torch.ones(2)}),
    attention(
        "complex-rotary",
        complex_rotary,
        axes={**PAIRS, "frequencies[0]": "2"},
        extra=lambda: {"frequencies": torch.ones(2)},
    ),
    Case(
        "cross-latents",
        lambda: {
            "latents": parameter(1, 6, 8, 4),
            "k": nn.Linear(6, 24),
            "v": nn.Linear(6, 18),
            "o": nn.Linear(18, 5),
        },
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                m.latents,
                m.k(x).unflatten(-1, (6, 4)).transpose(1, 2),
                m.v(x).unflatten(-1, (6, 3)).transpose(1, 2),
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        {"latents[1]": "6", "latents[3]": "4", "k.weight[0]": "(6 x 4)", "v.weight[0]": "(6 x 3)"},
    ),
    Case(
        "memory-slots",
        lambda: {
            "q": nn.Linear(6, 24),
            "k": parameter(1, 6, 9, 4),
            "v": parameter(1, 6, 9, 3),
            "o": nn.Linear(18, 5),
        },
        lambda m, x: m.o(
            F.scaled_dot_product_attention(m.q(x).unflatten(-1, (6, 4)).transpose(1, 2), m.k, m.v)
            .transpose(1, 2)
            .flatten(2)
        ),
        {"k[1]": "6", "k[2]": "9!", "v[2]": "9!", "k[3]": "4", "v[3]": "3"},
        {"k[2]": "softmax"},
    ),
    Case(
        "fused-qkv",
        lambda: {"qkv": nn.Linear(6, 72), "o": nn.Linear(24, 5)},
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                *(y.unflatten(-1, (6, 4)).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        {"qkv.weight[0]": "((6 x 4) + (6 x 4) + (6 x 4))", "o.weight[1]": "(6 x 4)"},
    ),
    Case(
        "fused-qkv-per-head",
        lambda: {"qkv": nn.Linear(6, 72), "o": nn.Linear(24, 5)},
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                *(y.transpose(1, 2) for y in m.qkv(x).unflatten(-1, (6, 12)).split(4, -1))
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        {"qkv.weight[0]": "(6 x (4 + 4 + 4))", "o.weight[1]": "(6 x 4)"},
    ),
    Case(
        "fused-qkv-gqa-blocks",  # Falcon: [q, q, k, v] per key/value head, taken by lists
        lambda: {"qkv": nn.Linear(6, 48), "o": nn.Linear(24, 5)},
        _falcon,
        {"qkv.weight[0]": "(3 x ((2 x 4) + 4 + 4))", "o.weight[1]": "(3 x 2 x 4)"},
    ),
    Case(
        "fused-qkv-unbind",  # ViT
        lambda: {"qkv": nn.Linear(6, 72), "o": nn.Linear(24, 5)},
        lambda m, x: m.o(
            F.scaled_dot_product_attention(
                *m.qkv(x).unflatten(-1, (3, 6, 4)).permute(2, 0, 3, 1, 4).unbind(0)
            )
            .transpose(1, 2)
            .flatten(2)
        ),
        {"qkv.weight[0]": "(3! x 6 x 4)", "o.weight[1]": "(6 x 4)"},
    ),
    Case(
        "torch-attention",
        lambda: {
            "up": nn.Linear(6, 12),
            "mha": nn.MultiheadAttention(12, 3, batch_first=True),
            "down": nn.Linear(12, 5),
        },
        lambda m, x: m.down(m.mha(y := m.up(x), y, y, need_weights=False)[0]),
        {
            "up.weight[0]": "12",
            "mha.in_proj_weight[0]": "(3! x 3 x 4)",
            "mha.in_proj_weight[1]": "12",
            "mha.in_proj_bias[0]": "(3! x 3 x 4)",
            "mha.out_proj.weight[1]": "(3 x 4)",
            "mha.out_proj.weight[0]": "12",
        },
    ),
    Case(
        "torch-encoder-layer",
        lambda: {
            "up": nn.Linear(6, 12),
            "layer": nn.TransformerEncoderLayer(12, 3, 10, batch_first=True),
            "down": nn.Linear(12, 5),
        },
        lambda m, x: m.down(m.layer(m.up(x))),
        {
            "layer.linear1.weight[0]": "10",
            "layer.self_attn.out_proj.weight[1]": "(3 x 4)",
            "up.weight[0]": "12",
            "layer.norm1.weight[0]": "12",
        },
        exact=False,
        least=2,
    ),
]
