"""Embeddings and lookups by data."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter

TOKENS = {"inputs": ((2, 7),), "tokens": 11}

CASES = [
    Case(
        "embedding",
        lambda: {"e": nn.Embedding(11, 12, padding_idx=0), "down": nn.Linear(12, 5)},
        lambda m, i: m.down(m.e(i)),
        {"e.weight[0]": "11!", "e.weight[1]": "12"},
        {"e.weight[0]": "looked up"},
        **TOKENS,
    ),
    Case(
        "embedding-positions",
        lambda: {
            "e": nn.Embedding(11, 12),
            "p": nn.Embedding(30, 12),
            "t": parameter(1, 12),
            "down": nn.Linear(12, 5),
        },
        lambda m, i: m.down(m.e(i) + m.p(torch.arange(i.shape[1])) + m.t),
        {"e.weight[1]": "12", "p.weight[1]": "12", "t[1]": "12", "p.weight[0]": "30!"},
        **TOKENS,
    ),
    Case(
        "embedding-scaled",
        lambda: {"e": nn.Embedding(11, 12), "down": nn.Linear(12, 5)},
        lambda m, i: m.down(m.e(i) * 12**0.5),
        {"e.weight[1]": "12"},
        **TOKENS,
    ),
    Case(
        "embedding-tied",
        lambda: {"e": nn.Embedding(11, 12), "mid": nn.Linear(12, 12)},
        lambda m, i: F.linear(m.mid(m.e(i)), m.e.weight),
        {"e.weight[0]": "11!", "e.weight[1]": "12", "mid.weight[1]": "12", "mid.weight[0]": "12"},
        **TOKENS,
    ),
    Case(
        "embedding-by-index",
        lambda: {"e": parameter(11, 12), "down": nn.Linear(12, 5)},
        lambda m, i: m.down(m.e[i]),
        {"e[0]": "11!", "e[1]": "12"},
        **TOKENS,
    ),
    Case(
        "embedding-factored",
        lambda: {
            "e": nn.Embedding(11, 4),
            "f": nn.Linear(4, 12, bias=False),
            "down": nn.Linear(12, 5),
        },
        lambda m, i: m.down(m.f(m.e(i))),
        {"e.weight[1]": "4", "f.weight[0]": "12"},
        **TOKENS,
    ),
    Case(
        "embedding-bag",
        lambda: {"e": nn.EmbeddingBag(11, 12), "down": nn.Linear(12, 5)},
        lambda m, i: m.down(m.e(i)),
        {"e.weight[0]": "11!", "e.weight[1]": "12"},
        **TOKENS,
    ),
    mid("index-positions", lambda m, x: x[:, torch.arange(x.shape[1] - 1)]),
    mid(
        "index-two",
        lambda m, x: x.unflatten(-1, (3, 4))[:, torch.tensor([1, 2]), torch.tensor([0, 2])],
        "(3! x 4)",
        down=4,
        why={"up.weight[0]": "looked up"},
    ),
    mid(
        "index-apart",
        lambda m, x: x.unflatten(-1, (3, 4))[:, [1, 2], :, [0, 3]].transpose(0, 1),
        "(3 x 4!)",
        down=3,
        why={"up.weight[0]": "looked up"},
    ),
    mid("index-select", lambda m, x: x.index_select(1, torch.tensor([0, 3]))),
    mid(
        "index-select-features",
        lambda m, x: x.index_select(2, torch.tensor([0, 3])),
        "12!",
        down=2,
        why={"up.weight[0]": "looked up"},
    ),
    mid(
        "index-mask",
        lambda m, x: x * x[:, 0][x[:, 0].sum(-1) > -99].mean(),
        "12!",
        why={"up.weight[0]": "mask"},
    ),
    mid("gather", lambda m, x: x.gather(1, (x > 0).long())),
    mid(
        "gather-features",
        lambda m, x: x.gather(2, (x > 0).long()),
        "12!",
        why={"up.weight[0]": "looked up"},
    ),
    mid(
        "take-along",
        lambda m, x: torch.take_along_dim(x, (x > 0).long(), 1),
        batches=False,
    ),
    mid(
        "scatter",
        lambda m, x: x.scatter(1, (x > 0).long(), 0.5),
    ),
    mid(
        "index-fill",
        lambda m, x: x.clone().index_fill_(2, torch.tensor([1]), 0.0),
        "12!",
        why={"up.weight[0]": "written by index"},
    ),
    mid(
        "one-hot",
        lambda m, x: F.one_hot(x.argmax(1), 7).float().mT.sum(1) + x.mean(1),
    ),
    mid("number-of-units", lambda m, x: x * (x.shape[-1] ** -0.5)),
    mid(
        "gather-by-parameter",
        lambda m, x: x.gather(1, (m.s > 0.4).long().view(1, 1, 12).expand(x.shape[0], 1, 12)),
        extra=lambda: {"s": parameter(12)},
        axes={"s[0]": "12"},
    ),
    mid(
        "parameter-sum",
        lambda m, x: x * m.s.sum(),
        extra=lambda: {"s": parameter(9)},
        axes={"s[0]": "9"},
    ),
]
