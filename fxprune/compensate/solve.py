"""The change of a consumer's weight and bias that best makes up for the residuals."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.compensate.moments import Products, Residuals


def least_squares(
    products: Products, residuals: Residuals, damping: float, *, centred: bool
) -> Tensor:
    """The change D of the weight that minimises ``||E - X D^T||^2 + sum_j lambda_j ||D_j||^2``.

    With ``lambda_j = damping * (X^T X)_jj``; the refit of papers such as OSSCAR (2024) and
    ZipLM (2023), damped towards the weight as it is. Solved by Cholesky on the normal matrix. An
    input that is dead keeps its weight.

    Args:
        products: sums of the inputs and of their products with the residuals.
        residuals: sums of the residuals.
        damping: relative to each input's own entry of the diagonal.
        centred: fit a bias too, so X and E are taken around their means.

    Returns:
        (outputs, inputs), float64.
    """
    return damped_solve(*normal(products, residuals, centred), damping)


def damped_solve(xx: Tensor, ex: Tensor, damping: float) -> Tensor:
    """``ex (xx + damping diag(xx))^-1``, nothing in directions without data.

    Args:
        xx: (inputs, inputs), positive semidefinite, float64.
        ex: (outputs, inputs).
        damping: relative to each entry of the diagonal.
    """
    diagonal = xx.diagonal().clamp(min=0)
    if damping > 0 and diagonal.min() > 0:
        damped = _damped(xx, damping, diagonal)
        # In place: for wide products these matrices are most of the memory.
        failed = torch.zeros((), dtype=torch.int32, device=xx.device)
        torch.linalg.cholesky_ex(damped, out=(damped, failed))
        if not failed:
            solved: Tensor = torch.cholesky_solve(ex.T, damped).T
            return solved
    values, vectors = torch.linalg.eigh(_damped(xx, damping, diagonal))
    # Directions without data are left as they are.
    tiny = float(values[-1]) * len(values) * torch.finfo(torch.float32).eps
    inverse = torch.where(values > tiny, 1 / values, 0.0)
    solution: Tensor = ex @ (vectors * inverse) @ vectors.T
    return solution


def _damped(xx: Tensor, damping: float, diagonal: Tensor) -> Tensor:
    damped = xx.clone()
    damped.diagonal().add_(damping * diagonal)
    return damped


def bias_change(products: Products, residuals: Residuals, change: Tensor) -> Tensor:
    """The change of the bias that goes with a change of the weight: (outputs,), float64."""
    mean = products.offset + products.x / residuals.rows
    return residuals.e / residuals.rows - change @ mean


def squares_after(
    products: Products, residuals: Residuals, change: Tensor, bias: Tensor | None
) -> float:
    """The sum of squared residuals with a change of the weight and of the bias."""
    rows = residuals.rows
    # What is added to each row is ``change (x - offset) + constant``.
    constant = change @ products.offset + (0.0 if bias is None else bias)
    return float(
        residuals.ee
        - 2 * (change * products.ex).sum()
        + ((change @ products.xx) * change).sum()
        - 2 * constant @ (residuals.e - change @ products.x)
        + rows * constant @ constant
    )


def normal(products: Products, residuals: Residuals, centred: bool) -> tuple[Tensor, Tensor]:
    """``X^T X`` (inputs, inputs) and ``E^T X`` (outputs, inputs), around the means if centred."""
    if not centred:
        return products.xx, products.ex
    x = products.x / residuals.rows
    xx = torch.outer(x, x).mul_(residuals.rows)
    torch.sub(products.xx, xx, out=xx)
    return xx, products.ex - torch.outer(residuals.e, x)
