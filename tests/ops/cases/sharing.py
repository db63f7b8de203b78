"""One weight used several times, weights computed from weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter


def _twice(m: Any, x: Tensor) -> Tensor:
    return m.down(m.same(m.same(m.up(x)).relu()).relu())


def _tied_block(m: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, m.w).relu(), m.w.t())


def _tied_names(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(m.up(x)).relu()) if m.b.weight is m.a.weight else x


def _tied() -> dict[str, Any]:
    parts = {
        "up": nn.Linear(6, 12),
        "a": nn.Linear(12, 12),
        "b": nn.Linear(12, 12),
        "down": nn.Linear(12, 5),
    }
    parts["b"].weight = parts["a"].weight
    return parts


def _lora() -> dict[str, Any]:
    return {"a": parameter(4, 12), "b": parameter(9, 4), "mid": nn.Linear(12, 9)}


class Scaled(nn.Module):
    """A leaf with parameters of its own, called twice."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.scale = parameter(size)
        self.register_buffer("offset", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


CASES = [
    Case(
        "shared-linear",
        lambda: {"up": nn.Linear(6, 12), "same": nn.Linear(12, 12), "down": nn.Linear(12, 5)},
        _twice,
        {"same.weight[0]": "12", "same.weight[1]": "12", "up.weight[0]": "12"},
    ),
    Case(
        "tied-transposed",
        lambda: {"w": parameter(12, 6)},
        _tied_block,
        {"w[0]": "12", "w[1]": "6!"},
    ),
    Case(
        "tied-names",
        _tied,
        lambda m, x: m.down(m.b(m.a(m.up(x)).relu())),
        {"a.weight[0]": "12", "b.weight[1]": "12", "b.bias[0]": "12"},
    ),
    mid(
        "own-leaf-twice",
        lambda m, x: m.leaf(m.leaf(x)),
        extra=lambda: {"leaf": Scaled(12)},
        axes={"leaf.scale[0]": "12", "leaf.offset[0]": "12"},
    ),
    mid(
        "lora",
        lambda m, x: m.mid(x) + x @ m.a.t() @ m.b.t() * 2,
        extra=_lora,
        down=9,
        axes={"a[0]": "4", "a[1]": "12", "b[0]": "9", "mid.weight[0]": "9"},
    ),
    mid(
        "lora-merged",
        lambda m, x: F.linear(x, m.mid.weight + m.b @ m.a, m.mid.bias),
        extra=_lora,
        down=9,
        axes={"a[0]": "4", "a[1]": "12", "b[0]": "9", "mid.weight[0]": "9"},
    ),
    mid(
        "weight-masked",
        lambda m, x: F.linear(x, m.w * m.mask),
        down=9,
        extra=lambda: {"w": parameter(9, 12), "mask": torch.ones(9, 12)},
        axes={"w[0]": "9", "mask[0]": "9", "mask[1]": "12"},
    ),
    mid(
        "weight-reshaped",
        lambda m, x: x @ m.w.view(12, 3, 4).flatten(1).relu(),
        down=12,
        extra=lambda: {"w": parameter(12, 12)},
        axes={"w[1]": "(3 x 4)", "w[0]": "12"},
    ),
    mid(
        "weight-standardised",
        lambda m, x: F.linear(x, m.w - m.w.mean(1, keepdim=True)),
        down=9,
        extra=lambda: {"w": parameter(9, 12)},
        axes={"w[0]": "9", "w[1]": "12"},
        exact=False,
    ),
    mid(
        "weight-normed",
        lambda m, x: m.n(x),
        down=9,
        extra=lambda: {"n": nn.utils.parametrizations.weight_norm(nn.Linear(12, 9))},
        axes={
            "n.parametrizations.weight.original0[0]": "9",
            "n.parametrizations.weight.original1[0]": "9",
            "n.parametrizations.weight.original1[1]": "12",
        },
        # A removed row has the norm 0, by which zeros are divided.
        exact=False,
        normalised=False,
    ),
    mid(
        "weight-normed-inputs",
        lambda m, x: m.n(x),
        down=9,
        extra=lambda: {"n": nn.utils.parametrizations.weight_norm(nn.Linear(12, 9), dim=1)},
        axes={
            "n.parametrizations.weight.original0[1]": "12",
            "n.parametrizations.weight.original1[0]": "9",
        },
        exact=False,
        normalised=False,
    ),
    mid(
        "weight-normed-whole",
        lambda m, x: m.n(x),
        down=9,
        extra=lambda: {"n": nn.utils.parametrizations.weight_norm(nn.Linear(12, 9), dim=None)},
        axes={"n.parametrizations.weight.original1[0]": "9"},
    ),
    mid(
        "spectral-normed",
        lambda m, x: m.n(x).relu(),
        down=9,
        extra=lambda: {"n": nn.utils.parametrizations.spectral_norm(nn.Linear(12, 9)).eval()},
        axes={
            "n.parametrizations.weight.original[0]": "9",
            "n.parametrizations.weight.original[1]": "12",
            "n.parametrizations.weight.0._u[0]": "9",
            "n.parametrizations.weight.0._v[0]": "12",
        },
    ),
    mid(
        "stacked-weights",
        lambda m, x: F.linear(x, torch.cat((m.a, m.b))),
        down=9,
        extra=lambda: {"a": parameter(4, 12), "b": parameter(5, 12)},
        axes={"a[0]": "4", "b[0]": "5", "a[1]": "12"},
    ),
    Case(
        "two-outputs",
        lambda: {"up": nn.Linear(6, 12), "a": nn.Linear(12, 5), "b": nn.Linear(12, 4)},
        lambda m, x: (m.a(y := m.up(x)), m.b(y)),
        {"up.weight[0]": "12", "a.weight[0]": "5!"},
    ),
    Case(
        "hidden-output",
        lambda: {"up": nn.Linear(6, 12), "a": nn.Linear(12, 5)},
        lambda m, x: (m.a(y := m.up(x)), y),
        {"up.weight[0]": "12!"},
        {"up.weight[0]": "graph output"},
    ),
    Case(
        "two-inputs",
        lambda: {"up": nn.Linear(6, 12), "b": nn.Linear(4, 12), "down": nn.Linear(12, 5)},
        lambda m, x, y: m.down(m.up(x) * m.b(y)[:, None]),
        {"up.weight[0]": "12", "b.weight[0]": "12"},
        inputs=((2, 7, 6), (2, 4)),
    ),
    Case(
        "recurrent",
        lambda: {
            "up": nn.Linear(6, 12),
            "h": nn.Linear(12, 12, bias=False),
            "down": nn.Linear(12, 5),
        },
        lambda m, x: _recurrent(m, m.up(x)),
        {"up.weight[0]": "12", "h.weight[0]": "12", "h.weight[1]": "12"},
    ),
]


def _recurrent(m: Any, x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 12)
    for step in range(3):
        state = torch.tanh(x[:, step] + m.h(state))
    return m.down(state)
