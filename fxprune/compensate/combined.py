"""Sums over the calibration rows of several processes, from those of each."""

from __future__ import annotations

import copy

import torch

from fxprune.compensate.moments import Products, Residuals
from fxprune.data.processes import Processes

Sums = list[tuple[Residuals, Products]]


def combined(among: Processes | None, sums: Sums) -> Sums:
    """The sums over the rows of all processes, as new values; the same ones for one process.

    A process may lack the last of them, and adds nothing to it then.
    """
    if among is None:
        return sums
    first = sums[0][1]
    count = max(among.gather(len(sums)))
    outputs, device = len(first.ex), first.ex.device
    sums = sums + [(Residuals(outputs, device), first.apart())] * (count - len(sums))
    offset = among.first(first.offset.cpu()).to(device)
    return [(all_residuals(among, r), _products(among, r, p, offset)) for r, p in sums]


def all_residuals(among: Processes | None, mine: Residuals) -> Residuals:
    """Those of all processes."""
    if among is None:
        return mine
    found = copy.copy(mine)
    counted = torch.stack([mine.ee.new_tensor(mine.rows), mine.ee, mine.yy])
    rows, found.ee, found.yy = among.total(counted)
    found.rows, found.e = int(rows), among.total(mine.e)
    return found


def _products(
    among: Processes, residuals: Residuals, mine: Products, offset: torch.Tensor
) -> Products:
    """Around one offset: what each process took off its rows is put back."""
    found, moved = copy.copy(mine), mine.offset - offset
    found.offset = offset
    across = torch.outer(mine.x, moved)
    found.x = among.total(mine.x + residuals.rows * moved)
    found.xx = among.total(mine.xx + across + across.T + residuals.rows * torch.outer(moved, moved))
    found.ex = among.total(mine.ex + torch.outer(residuals.e, moved))
    return found
