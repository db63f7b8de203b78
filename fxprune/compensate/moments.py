"""Sums over calibration rows, from which a consumer is solved and its error is known."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor


class Residuals:
    """Streamed sums of the residuals ``e``, what a consumer's output lacks, in float64.

    Attributes:
        rows: number of rows.
        e: (outputs,), sum of the residuals.
        ee: sum of squares of the residuals.
        yy: sum of squares of the target.
    """

    def __init__(self, outputs: int, device: torch.device) -> None:
        self.rows = 0
        self.e = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.ee, self.yy = self.e.new_zeros(()), self.e.new_zeros(())

    def add(self, e: Tensor, y: Tensor) -> None:
        """Add the residuals and targets of a batch, both (rows, outputs)."""
        self.rows += len(e)
        self.e += e.sum(0)
        self.ee += e.square().sum()
        self.yy += y.square().sum()

    def join(self, other: Residuals) -> None:
        """Add the sums of other rows."""
        self.rows += other.rows
        self.e += other.e
        self.ee += other.ee
        self.yy += other.yy

    def relative(self, squares: Tensor | float) -> float:
        """A sum of squared errors relative to the target: ``||error|| / ||target||``."""
        scale = float(self.yy) or 1.0
        return math.sqrt(max(float(squares), 0.0) / scale)


class Products:
    """Streamed sums of inputs ``x`` and of their products, in float64.

    Rows come in float32; the products of one batch are summed in that, batches in float64.

    Attributes:
        offset: (inputs,), is taken off ``x``. Near the mean if ``centred``: the sums would else
            lose the digits that matter.
        x: (inputs,), sum of ``x - offset``.
        xx: (inputs, inputs), sum of the outer products of ``x - offset``.
        ex: (outputs, inputs), sum of the outer products of residuals and ``x - offset``.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device, centred: bool) -> None:
        self._unset, self._shared = centred, False
        self.offset = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.x = torch.zeros_like(self.offset)
        self.xx = self.offset.new_zeros(inputs, inputs)
        self.ex = self.offset.new_zeros(outputs, inputs)

    def beside(self, outputs: int) -> Products:
        """Sums for another product that reads the very same rows: those of the inputs are there."""
        other = copy.copy(self)
        other._unset, other._shared = False, True
        other.ex = self.ex.new_zeros(outputs, len(self.x))
        return other

    def apart(self) -> Products:
        """Empty sums for other rows, around the same offset."""
        other = copy.copy(self)
        other._unset = other._shared = False
        other.x, other.xx, other.ex = (torch.zeros_like(t) for t in (self.x, self.xx, self.ex))
        return other

    def join(self, other: Products, *, take: bool = False) -> Products:
        """The sums of these rows and of others, around the same offset.

        Args:
            other: the others.
            take: they are not needed any more.
        """
        if take:
            other.x += self.x
            other.xx += self.xx
            other.ex += self.ex
            return other
        both = copy.copy(self)
        both.x, both.xx, both.ex = self.x + other.x, self.xx + other.xx, self.ex + other.ex
        return both

    def add(self, x: Tensor, e: Tensor) -> None:
        """Add a batch: inputs (rows, inputs) and residuals (rows, outputs)."""
        if self._unset and len(x):
            self.offset, self._unset = x.mean(0).double(), False
        x = x - self.offset.to(x.dtype) if self.offset.any() else x
        if not self._shared:
            self.x += x.sum(0)
            self.xx += x.T @ x
        self.ex += e.T @ x
