"""Models with a loop over the experts that the data hits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPERTS, HIDDEN, INNER, CHOSEN = 5, 6, 7, 2


class Loop(nn.Module):
    """Experts of which each is computed for the rows that chose it."""

    def __init__(self, run: Callable[..., Tensor], classes: int = EXPERTS) -> None:
        super().__init__()
        self.run, self.classes = run, classes
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER))
        self.few = nn.Parameter(torch.randn(EXPERTS - 2, HIDDEN, INNER))
        self.parts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN, -1)
        mask = F.one_hot(chosen, self.classes).permute(2, 1, 0)
        return x + self.run(self, x, weights, mask)

    def expert(self, rows: Tensor, e: Any) -> Tensor:
        return F.linear(F.silu(F.linear(rows, self.up[e])), self.down[e])


def hit(mask: Tensor) -> Tensor:
    return torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()


def by_tensor(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for e in hit(mask):
        e = e[0]
        place, row = torch.where(mask[e])
        values = F.dropout(self.expert(x[row], e), 0.1, self.training)
        out.index_add_(0, row, values * weights[row, place, None])
    return out


def by_number(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for found in hit(mask):
        e = int(found.item())
        place, row = torch.where(mask[e].squeeze(0))
        if row.numel() == 0:
            continue
        out = out.index_add(0, row, self.expert(x[row], e) * weights[row, place, None])
    return out


def by_list(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for e in hit(mask).flatten().tolist():
        row, place = mask[e].t().nonzero(as_tuple=True)
        values = self.expert(x[row], e) * weights[row, place, None]
        out.index_put_((row,), values, accumulate=True)
    return out


def by_module(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """A tensor of one number as an index, and modules in a list."""
    out = torch.zeros_like(x)
    for e in (mask.bool().sum((-1, -2)) > 0).nonzero():
        place, row = torch.where(mask[e].squeeze(0))
        out.index_add_(0, row, self.parts[e](x[row]) * weights[row, place, None])
    return out


def joined(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The rows of all hits side by side, and then to their places."""
    rows, values = [], []
    for (e,) in hit(mask).tolist():
        place, row = torch.where(mask[e])
        rows.append(row)
        values.append(self.expert(x[row], e) * weights[row, place, None])
    return torch.zeros_like(x).index_add(0, torch.cat(rows), torch.cat(values))


def branching(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The last experts do nothing to their rows."""
    out = torch.zeros_like(x)
    for found in hit(mask):
        e = int(found)
        place, row = torch.where(mask[e])
        values = x[row] if e > 2 else self.expert(x[row], e)
        out.index_add_(0, row, values * weights[row, place, None])
    return out


def idle(self: Loop, x: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The last experts do nothing to their rows, and have no second matrix."""
    out = torch.zeros_like(x)
    for found in hit(mask):
        e = int(found)
        place, row = torch.where(mask[e])
        values = x[row]
        if e < EXPERTS - 2:
            values = F.linear(F.silu(F.linear(values, self.up[e])), self.few[e])
        out.index_add_(0, row, values * weights[row, place, None])
    return out


def inputs(rows: int) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows))


def built(run: Callable[..., Tensor], **options: Any) -> Loop:
    torch.manual_seed(0)
    return Loop(run, **options).eval()


RUNS = (by_tensor, by_number, by_list, by_module, joined, branching, idle)
