"""In which order units go if the weights that stay are refitted, and what each then costs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """A product ``y = x W^T`` that loses units, with ``A = E[x x^T]`` and ``G = E[g g^T]``.

    Attributes:
        inverse: of A, damped, shape (inputs, inputs).
        product: some ``R W`` with ``R^T R = G``, shape (outputs, inputs).
    """

    inverse: Tensor
    product: Tensor

    @staticmethod
    def of(
        inputs: Tensor, root: Tensor, weight: Tensor, damping: float, share: float = 1.0
    ) -> Block:
        """The product before any units go.

        Args:
            inputs: A, shape (inputs, inputs), float64; it is overwritten.
            root: R, see :func:`gradient_root`.
            weight: W, shape (outputs, inputs), float.
            damping: added to A, relative to its diagonal.
            share: which part of G is meant.
        """
        inverse = damped_inverse(inputs, damping).to(weight.dtype)
        return Block(inverse, (root.to(weight.dtype) @ weight).mul_(share**0.5))


def removal_costs(blocks: Sequence[Block], columns: Tensor, rounds: int) -> Tensor:
    """Cost of every unit when the units of some products go one after the other, from all at once.

    Optimal brain surgery with a Kronecker-factored Fisher: with unit u on the columns B of each
    product, removing it and refitting what stays costs the sum over the products of

        1/2 tr(G W_B ((A^-1)_BB)^-1 W_B^T)

    of loss per token; ``W`` and ``A^-1`` are then those of the refitted, smaller products.

    Args:
        blocks: the products; one, or one for each expert.
        columns: the columns of each unit, int64 of shape (units, columns per unit); on the device
            of the others.
        rounds: after how many steps all units are gone; several go in one step if there are more.

    Returns:
        float64 of shape (units,) on the CPU, in nats per token. In the order of removal they never
        fall.
    """
    blocks = list(blocks)
    count = len(columns)
    at_once = max(1, -(-count // rounds))
    costs = torch.zeros(count, dtype=torch.float64)
    alive = torch.arange(count)
    highest = 0.0
    while len(alive):
        places = columns[alive]
        each = functools.reduce(
            torch.add, (_unit_costs(block.inverse, block.product, places) for block in blocks)
        ).cpu()
        lowest = torch.argsort(each, stable=True)[:at_once]
        for place in lowest.tolist():
            # A little more each time, so that the scores alone tell the order.
            highest = max(highest * (1 + 1e-6), 0.5 * float(each[place]))
            costs[alive[place]] = highest
        gone = columns[alive[lowest]].flatten()
        for number, block in enumerate(blocks):  # one after the other, for memory
            blocks[number] = Block(*_without(block.inverse, block.product, gone))
        stays = torch.ones(len(alive), dtype=torch.bool)
        stays[lowest] = False
        alive = alive[stays]
    return costs


def damped_inverse(inputs: Tensor, damping: float) -> Tensor:
    """``(A + damping diag(A))^-1``, where A was.

    Inputs that are (nearly) dead are damped by what others are.
    """
    diagonal = inputs.diagonal()
    scale = diagonal.clamp(min=1e-6 * float(diagonal.mean()) + torch.finfo(torch.float64).tiny)
    scale = scale.rsqrt()
    damping = max(damping, 1e-6)
    scaled = inputs.mul_(scale[:, None]).mul_(scale)  # as large as all else that is there
    scaled.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(scaled)
    inverse: Tensor
    if not failed:  # torch.cholesky_inverse takes seven times as long
        half = torch.eye(len(scale), dtype=scaled.dtype, device=scaled.device).T
        torch.linalg.solve_triangular(factor, half, upper=False, out=half)  # by columns: in place
        del factor
        inverse = torch.mm(half.T, half, out=scaled)
    else:  # sums in float32 leave eigenvalues below zero
        values, vectors = torch.linalg.eigh(scaled)
        inverse = torch.mm(vectors / values.clamp(min=damping), vectors.T, out=scaled)
    return inverse.mul_(scale[:, None]).mul_(scale)


def gradient_root(matrix: Tensor) -> Tensor:
    """Some R with ``R^T R`` the matrix, which is positive but for rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        root: Tensor = factor.T
    else:
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return root


def _unit_costs(inverse: Tensor, product: Tensor, columns: Tensor) -> Tensor:
    """``tr(M_B ((A^-1)_BB)^-1 M_B^T)`` of every unit, shape (units,), M being ``G^1/2 W``."""
    if columns.shape[1] == 1:
        places = columns[:, 0]
        return product[:, places].square().sum(0) / inverse.diagonal()[places].clamp(min=1e-30)
    blocks = inverse[columns[:, :, None], columns[:, None, :]]
    jitter = 1e-6 * blocks.diagonal(dim1=1, dim2=2).mean(1)
    blocks = blocks + jitter[:, None, None] * torch.eye(columns.shape[1]).to(blocks)
    right = product[:, columns].permute(1, 2, 0)
    solved = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), right, upper=False)
    costs: Tensor = solved.square().sum((1, 2))
    return costs


def _without(inverse: Tensor, product: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse and the product once some columns are removed and the others refitted."""
    rows = inverse[gone]
    block = rows[:, gone]
    block = block + 1e-6 * block.diagonal().mean() * torch.eye(len(gone)).to(block)
    factor = torch.linalg.cholesky(block)
    left = torch.linalg.solve_triangular(factor, rows, upper=False)
    right = torch.linalg.solve_triangular(factor, product[:, gone].T, upper=False)
    product = product - right.T @ left
    inverse = inverse - left.T @ left
    product[:, gone] = 0
    return inverse, product
