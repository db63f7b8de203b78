"""Element-wise ops, casts and factories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter


def _set(x: Tensor, place: Any, value: Any) -> Tensor:
    x = x.clone()
    x[place] = value
    return x


ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "relu6": F.relu6,
    "leaky": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "in-place": lambda x: F.relu(x.clone(), inplace=True).add_(1).mul_(2).clamp_(0, 3),
    "masked-fill": lambda x: x.masked_fill(x > 0.2, 0.7),
    "masked-fill-in-place": lambda x: x.clone().masked_fill_(x > 0.2, 0.7),
    "where": lambda x: torch.where(x > 0, x, x * 2),
    "where-scalar": lambda x: torch.where(x > 0, 1.0, x),
    "aliases": lambda x: torch.subtract(torch.multiply(x, 2), torch.true_divide(x, 3)),
    "divide": lambda x: torch.divide(x, 3) + torch.negative(x) + torch.absolute(x),
    "floor-divide": lambda x: x // 0.3 + x % 0.7,
    "powers": lambda x: 1.1**x + x**2 + x.square() + torch.float_power(x, 2).float(),
    "clip": lambda x: x.clip(-0.5, 0.5) + x.clamp(min=0.1),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.3) + torch.addcmul(x, x, x, value=0.5),
    "casts": lambda x: x.double().to(torch.float64).type_as(x).to(x.device).contiguous(),
    "bf16": lambda x: (x > 0).to(torch.bfloat16).float() + x,
    "logic": lambda x: ((x > 0) & (x < 1) | (x == 2) ^ ~(x > 3)).float(),
    "rsub": lambda x: 1 - x + 2 / (x.abs() + 1) + torch.rsqrt(x.abs() + 1),
    "like": lambda x: x + torch.zeros_like(x) + torch.ones_like(x) * torch.full_like(x, 2.0),
    "zeros": lambda x: x + torch.zeros(12) + torch.ones(1, 12),
    "full": lambda x: x + torch.full((x.shape[0], 1, 12), 2.0),
    "new": lambda x: x + x.new_zeros(12) + x.new_full((1, 12), 2.0) + x.new_ones(x.shape),
    "fill": lambda x: x + torch.empty(12).fill_(3.0) + torch.empty_like(x).zero_(),
    "arange": lambda x: x * torch.arange(12) + torch.arange(1, 25, 2),
    "slopes": lambda x: x * 2.0 ** -(torch.arange(1, 13).float() / 4),
    "mask-of-features": lambda x: x.masked_fill(torch.arange(12) > 4, 0.5),
    "maximum": lambda x: torch.maximum(x, x.cos()) + torch.minimum(x, x.tanh()),
    "frozen-grad": lambda x: x + x.detach().sigmoid(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "complex": lambda x: torch.complex(x, x.cos()).abs() + torch.polar(x.abs(), x).imag,
    "set-positions": lambda x: _set(x, (slice(None), slice(0, 3)), 0.5),
}


def _no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = (m.scale * 2).sigmoid()
    return x * scale


def _scaled(name: str, inner: Any, shape: tuple[int, ...], axis: int, **options: Any) -> Case:
    return mid(
        name,
        inner,
        extra=lambda: {"scale": parameter(*shape)},
        axes={f"scale[{axis}]": "12"},
        **options,
    )


CASES = [
    *(mid(name, lambda m, x, f=f: f(x)) for name, f in ACTIVATIONS.items()),
    _scaled("broadcast-vector", lambda m, x: x * m.scale, (12,), 0),
    _scaled("broadcast-matrix", lambda m, x: x * m.scale + 1, (7, 12), 1, alone=True),
    _scaled("broadcast-ones", lambda m, x: x * m.scale, (1, 1, 12), 2),
    _scaled(
        "broadcast-up",
        lambda m, x: (x.unsqueeze(1) * m.scale).sum(1),
        (4, 1, 12),
        2,
    ),
    _scaled("layer-scale-in-place", lambda m, x: x.mul_(m.scale), (12,), 0),
    _scaled("expand-as", lambda m, x: x * m.scale.expand_as(x), (12,), 0),
    _scaled("expand-as-alone", lambda m, x: m.scale.expand_as(x), (12,), 0),
    _scaled("broadcast-to", lambda m, x: x * torch.broadcast_to(m.scale, x.shape), (12,), 0),
    _scaled(
        "broadcast-tensors", lambda m, x: torch.mul(*torch.broadcast_tensors(x, m.scale)), (12,), 0
    ),
    _scaled("clamp-tensor", lambda m, x: x.clamp(max=m.scale), (12,), 0),
    _scaled("where-parameter", lambda m, x: torch.where(x > 0.3, x, m.scale), (12,), 0),
    _scaled("no-grad-region", _no_grad, (12,), 0),
    _scaled("copy-in-place", lambda m, x: torch.empty_like(x).copy_(m.scale) * x, (12,), 0),
    mid(
        "prelu",
        lambda m, x: m.act(x.mT).mT,
        extra=lambda: {"act": nn.PReLU(12)},
        axes={"act.weight[0]": "12"},
    ),
    mid("prelu-one", lambda m, x: m.act(x), extra=lambda: {"act": nn.PReLU()}),
    mid(
        "buffer",
        lambda m, x: x * m.mask,
        extra=lambda: {"mask": torch.ones(12)},
        axes={"mask[0]": "12"},
    ),
    mid("constant", lambda m, x: x * torch.tensor([float(i) for i in range(12)])),
    mid("set-slice", lambda m, x: _set(x, (..., slice(0, 3)), 0.5), "(3 + 9)"),
    mid("set-from-slice", lambda m, x: _set(x, (..., slice(0, 4)), x[..., 4:8]), "(4 + 4 + 4)"),
    mid(
        "linspace",
        lambda m, x: x * torch.linspace(0, 1, 12),
        "12!",
        why={"up.weight[0]": "depend on the size"},
    ),
    mid("eye", lambda m, x: x @ torch.eye(12), "12!", why={"up.weight[0]": "depend on the size"}),
    mid(
        "frexp",
        lambda m, x: torch.frexp(x).mantissa,
        "12!",
        why={"up.weight[0]": "unknown op aten.frexp"},
    ),
    mid(
        "fft",
        lambda m, x: torch.fft.fft(x).real,
        "12!",
        why={"up.weight[0]": "Fourier transform"},
    ),
    mid("one-unit-broadcast", lambda m, x: x * x.mean((0, 1), keepdim=True), "12", exact=True),
]
