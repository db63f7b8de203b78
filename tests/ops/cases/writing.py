"""Writes by position, and what torch itself takes apart. 12 features are to pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.ops.single import Case, mid, parameter

PLACES = torch.tensor([4, 0])
EVERY = torch.tensor([3, 1, 0, 2, 6, 5, 4])


def _rows(x: Tensor) -> Tensor:
    """An index for every element that turns the positions round."""
    return EVERY[None, :, None].expand(x.shape[0], -1, x.shape[2])


def _put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, PLACES] = x[:, 2:4]
    return y


def _put_number(x: Tensor) -> Tensor:
    y = x * 1
    y[x > 0.5] = 0.25
    return y


def _put_rows(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.index_put_((torch.tensor([0, 1])[:, None], PLACES), x[:2, 5:], accumulate=True)
    return y


FREE = {
    "index-add": lambda x: x.index_add(1, PLACES, x[:, 2:4], alpha=2),
    "index-add-in-place": lambda x: torch.zeros_like(x).index_add_(1, EVERY, x),
    "index-copy": lambda x: x.index_copy(1, PLACES, x[:, 2:4]),
    "index-fill": lambda x: x.index_fill(1, PLACES, 0.0),
    "index-reduce": lambda x: x.index_reduce(1, PLACES, x[:, 2:4], "amax"),
    "index-put": _put,
    "index-put-rows": _put_rows,
    "index-put-number": _put_number,
    "scatter": lambda x: x.scatter(1, _rows(x), x * 2),
    "scatter-number": lambda x: x.scatter(1, _rows(x)[:, :2], 0.0) * 1,
    "scatter-add": lambda x: torch.zeros_like(x).scatter_add(1, _rows(x), x),
    "scatter-add-in-place": lambda x: torch.zeros_like(x).scatter_add_(1, _rows(x), x),
    "scatter-reduce": lambda x: x.scatter_reduce(1, _rows(x), x * 2, "amax"),
    "select-scatter": lambda x: x.select_scatter(x[:, 3], 1, 0),
    "slice-scatter": lambda x: x.slice_scatter(x[:, 3:5], 1, 0, 2),
    "windows": lambda x: x.unfold(1, 3, 2).mean(-1),
    "bucketize": lambda x: x + torch.bucketize(x, torch.tensor([0.0, 1.0])) * x,
    "searchsorted": lambda x: x * torch.searchsorted(torch.tensor([0.0, 1.0]), x),
    "diagonal": lambda x: x[:, :, None].expand(-1, -1, 7, -1).diagonal(0, 1, 2).mT,
    "cumulative-maximum": lambda x: x.cummax(1)[0] + x.cumsum(1).cumprod(1),
    "median": lambda x: x.median(1, keepdim=True)[0] + x.mode(1, keepdim=True)[0] + x,
    "quantile": lambda x: x.quantile(0.3, 1, keepdim=True) + x.kthvalue(2, 1, keepdim=True)[0] + x,
    "range": lambda x: sum(torch.aminmax(x, dim=1, keepdim=True)) + x,
    "safe-softmax": lambda x: torch._safe_softmax(x, 1) * x,
    "spectrum-of-positions": lambda x: torch.fft.fft(x, dim=1).real,
    "in-place-shapes": lambda x: (x * 1).unsqueeze_(1).squeeze_(1).transpose_(1, 2).mT,
    "in-place-order": lambda x: (x * 1).cumsum_(1),
    "dropout-in-place": lambda x: F.dropout(x * 1, 0.3, False, True),
    "alpha-dropout-in-place": lambda x: F.alpha_dropout(x * 1, 0.3, False, True),
    "feature-alpha-dropout": lambda x: F.feature_alpha_dropout(x, 0.3, False),
    "stacked": lambda x: torch.hstack([x, x])[:, :7] + torch.vstack([x, x])[: x.shape[0]],
}
FROZEN = {
    "scatter-features": (lambda x: x.scatter(2, torch.zeros_like(x).long(), x), "written by index"),
    "diagonal-of-features": (lambda x: x.diagonal(0, 1, 2)[..., None] + x, "diagonal"),
    "windows-of-features": (lambda x: x.unfold(2, 4, 4).mean(-1).repeat(1, 1, 4), "window"),
    "whole-maximum": (lambda x: x / x.max(), "every unit"),
    "put-by-mask": (
        lambda x: x.clone().index_put((x.mean(-1) > 0,), x[0, 0]),
        "written by a mask",
    ),
}

CASES = [
    *(mid(f"write-{name}", lambda m, x, f=f: f(x)) for name, f in FREE.items()),
    *(
        mid(f"write-{name}", lambda m, x, f=f: f(x), "12!", why={"up.weight[0]": why})
        for name, (f, why) in FROZEN.items()
    ),
    mid(
        "cosine",
        lambda m, x: x * F.cosine_similarity(x, m.d, -1)[..., None],
        extra=lambda: {"d": parameter(12)},
        axes={"d[0]": "12"},
        exact=False,
    ),
    mid(
        "pairwise-distance",
        lambda m, x: x * F.pairwise_distance(x, m.d, keepdim=True),
        extra=lambda: {"d": parameter(1, 1, 12)},
        axes={"d[2]": "12"},
        exact=False,
    ),
    mid(
        "kronecker",
        lambda m, x: x @ torch.kron(m.d, m.e),
        "(3 x 4)",
        extra=lambda: {"d": parameter(3, 2), "e": parameter(4, 6)},
        axes={"d[0]": "3", "e[0]": "4", "down.weight[1]": "(2 x 6)"},
    ),
    mid(
        "write-take-along",
        lambda m, x: x.take_along_dim(_rows(x), 1),
        batches=False,  # torch fixes them
        alone=True,
    ),
    Case(
        "embedding-of-bags",
        lambda: {"e": nn.EmbeddingBag(11, 12, mode="sum"), "down": nn.Linear(12, 5)},
        lambda m, i: m.down(m.e(i)),
        {"e.weight[0]": "11!", "e.weight[1]": "12"},
        {"e.weight[0]": "looked up"},
        inputs=((2, 7),),
        tokens=11,
    ),
]
