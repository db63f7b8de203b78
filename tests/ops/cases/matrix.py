"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter


def weights(**shapes: tuple[int, ...]) -> Any:
    return lambda: {name: parameter(*shape) for name, shape in shapes.items()}


def product(name: str, body: Any, axes: dict[str, str], inputs: Any = None, **options: Any) -> Case:
    """Two weights a (6, 12) and b (12, 5) and more."""
    shapes = {"a": (6, 12), "b": (12, 5), **options.pop("shapes", {})}
    if inputs is not None:
        options["inputs"] = inputs
    return Case(name, weights(**shapes), body, axes, **options)


TWELVE = {"a[1]": "12", "b[0]": "12"}
CASES = [
    Case(
        "linear",
        lambda: {
            "up": nn.Linear(6, 12),
            "mid": nn.Linear(12, 9, bias=False),
            "down": nn.Linear(9, 5),
        },
        lambda m, x: m.down(m.mid(m.up(x).relu()).relu()),
        {
            "up.weight[0]": "12",
            "up.weight[1]": "6!",
            "mid.weight[1]": "12",
            "mid.weight[0]": "9",
            "down.weight[0]": "5!",
        },
        {"up.weight[1]": "graph input", "down.weight[0]": "graph output"},
    ),
    Case(
        "linear-no-batch",
        lambda: {"up": nn.Linear(6, 12), "down": nn.Linear(12, 5)},
        lambda m, x: m.down(m.up(x).relu()),
        {"up.weight[0]": "12"},
        inputs=((2, 6),),
    ),
    product("matmul", lambda m, x: (x @ m.a).relu() @ m.b, TWELVE),
    product("matmul-transposed", lambda m, x: F.linear(x, m.a.t()).relu() @ m.b, TWELVE),
    product("matmul-mT", lambda m, x: (x @ m.a).relu() @ m.b.mT.mT.T.T, TWELVE),
    product("matmul-left", lambda m, x: (m.b.t() @ (m.a.t() @ x.mT).relu()).mT, TWELVE),
    product(
        "matmul-vector",
        lambda m, x: (x @ m.a).relu() @ m.c * m.d,
        {"a[1]": "12", "c[0]": "12"},
        shapes={"c": (12,), "d": (7,)},
        alone=True,
    ),
    product(
        "mv",
        lambda m, x: torch.mv((x @ m.a).relu(), m.c),
        {"a[1]": "12", "c[0]": "12"},
        shapes={"c": (12,)},
        inputs=((2, 6),),
    ),
    product(
        "dot",
        lambda m, x: (x @ m.a).relu() @ m.b * torch.dot(m.c, m.d),
        {**TWELVE, "c[0]": "9", "d[0]": "9"},
        shapes={"c": (9,), "d": (9,)},
    ),
    product(
        "outer",
        lambda m, x: x @ m.a + x @ torch.outer(m.c, m.d) @ m.e,
        {"d[0]": "4", "e[0]": "4", "e[1]": "12!"},
        shapes={"c": (6,), "d": (4,), "e": (4, 12)},
    ),
    product("inner", lambda m, x: torch.inner((x @ m.a).relu(), m.b.t()), TWELVE),
    product("tensordot", lambda m, x: torch.tensordot((x @ m.a).relu(), m.b, dims=1), TWELVE),
    product(
        "tensordot-two",
        lambda m, x: torch.tensordot((x @ m.a).unflatten(-1, (3, 4)), m.c, dims=([2, 3], [1, 0])),
        {"a[1]": "(3 x 4)", "c[0]": "4", "c[1]": "3"},
        shapes={"c": (4, 3, 5)},
    ),
    product("mm", lambda m, x: torch.mm(torch.mm(x, m.a).relu(), m.b), TWELVE, ((2, 6),)),
    product(
        "addmm",
        lambda m, x: torch.addmm(m.d, torch.addmm(m.c, x, m.a).relu(), m.b, beta=2),
        {**TWELVE, "c[0]": "12"},
        ((2, 6),),
        shapes={"c": (12,), "d": (5,)},
    ),
    product(
        "addmm-wide-bias",
        lambda m, x: torch.addmm(m.c, x, m.a).relu() @ m.b,
        {**TWELVE, "c[1]": "12"},
        ((2, 6),),
        shapes={"c": (1, 12)},
    ),
    product(
        "bmm",
        lambda m, x: torch.bmm(
            torch.bmm(x, m.a.expand(x.shape[0], -1, -1)).relu(),
            m.b.unsqueeze(0).repeat(x.shape[0], 1, 1),
        ),
        TWELVE,
    ),
    product(
        "baddbmm",
        lambda m, x: torch.baddbmm(m.c, x, m.a.expand(x.shape[0], -1, -1)).relu() @ m.b,
        {**TWELVE, "c[2]": "12"},
        shapes={"c": (1, 1, 12)},
    ),
    product(
        "einsum",
        lambda m, x: torch.einsum("bsh,ho->bso", torch.einsum("bsd,dh->bsh", x, m.a), m.b),
        TWELVE,
    ),
    product(
        "einsum-ellipsis",
        lambda m, x: torch.einsum(
            "...h,ho->...o", torch.einsum("...d,dh->...h", x, m.a).relu(), m.b
        ),
        TWELVE,
    ),
    product(
        "einsum-implicit",
        lambda m, x: torch.einsum("abh,ho", torch.einsum("abc,cd", x, m.a).relu(), m.b),
        TWELVE,
    ),
    product("einsum-three", lambda m, x: torch.einsum("bsd,dh,ho->bso", x, m.a, m.b), TWELVE),
    product(
        "einsum-heads",
        lambda m, x: torch.einsum("bsnk,nko->bso", torch.einsum("bsd,dnk->bsnk", x, m.c), m.e),
        {"c[1]": "3", "c[2]": "4", "e[0]": "3", "e[1]": "4"},
        shapes={"c": (6, 3, 4), "e": (3, 4, 5)},
    ),
    product(
        "einsum-sum",
        lambda m, x: torch.einsum("bsh->bs", (x @ m.a).exp()),
        {"a[1]": "12"},
        exact=False,
    ),
    product(
        "einsum-diagonal",
        lambda m, x: torch.einsum("bs,h->bsh", x[..., 0], torch.einsum("hh->h", m.c)) @ m.b,
        {"c[0]": "12", "c[1]": "12", "b[0]": "12"},
        shapes={"c": (12, 12)},
    ),
    product(
        "diagonal-written",
        lambda m, x: x @ m.a @ torch.diagonal_scatter(m.c, m.d.exp() - 1) @ m.b,
        {"a[1]": "12", "c[0]": "12", "c[1]": "12", "d[0]": "12", "b[0]": "12"},
        shapes={"c": (12, 12), "d": (12,)},
    ),
    product(
        "expert-weights",
        lambda m, x: torch.einsum(
            "bsi,bsio->bso",
            F.silu(torch.einsum("bsd,sdi->bsi", x, m.c)),
            m.e.unsqueeze(0).expand(x.shape[0], -1, -1, -1),
        ),
        {"c[2]": "11", "e[1]": "11"},
        shapes={"c": (7, 6, 11), "e": (7, 11, 5)},
        alone=True,
    ),
    mid(
        "swiglu",
        lambda m, x: F.silu(x) * m.gate(x.new_ones(6)),
        extra=lambda: {"gate": nn.Linear(6, 12)},
        axes={"gate.weight[0]": "12"},
    ),
    Case(
        "gated",
        lambda: {"gate": nn.Linear(6, 12), "up": nn.Linear(6, 12), "down": nn.Linear(12, 5)},
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)),
        {"gate.weight[0]": "12", "up.weight[0]": "12", "down.weight[1]": "12"},
    ),
    mid(
        "bilinear",
        lambda m, x: m.b(x, m.other(x)),
        down=9,
        extra=lambda: {"b": nn.Bilinear(12, 8, 9), "other": nn.Linear(12, 8)},
        axes={"b.bias[0]": "9", "b.weight[0]": "9", "b.weight[1]": "12", "b.weight[2]": "8"},
    ),
    product(
        "addmv",
        lambda m, x: torch.addmv(m.d, (x @ m.a).relu(), m.c),
        {"a[1]": "12", "c[0]": "12", "d[0]": "1"},
        shapes={"c": (12,), "d": (1,)},
        inputs=((2, 6),),
    ),
    product(
        "addbmm",
        lambda m, x: torch.addbmm(m.d, m.c, m.e) @ m.b * x.sum(),
        {"c[0]": "3", "c[2]": "4", "e[0]": "3", "e[1]": "4", "e[2]": "12", "d[0]": "12"},
        shapes={"c": (3, 9, 4), "e": (3, 4, 12), "d": (12,)},
        alone=True,
    ),
    product(
        "cdist",
        lambda m, x: torch.cdist((x @ m.a).relu(), m.c) @ m.d,
        {"a[1]": "12", "c[1]": "12", "c[0]": "9", "d[0]": "9"},
        shapes={"c": (9, 12), "d": (9, 5)},
        exact=False,
        normalised=False,
    ),
    product(
        "cdist-activations",
        lambda m, x: torch.cdist((x @ m.a).exp(), (x @ m.c).cos(), p=1.0),
        {"a[1]": "12", "c[1]": "12"},
        shapes={"c": (6, 12)},
        exact=False,
        normalised=False,
    ),
]
