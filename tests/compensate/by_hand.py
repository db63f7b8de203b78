"""Compensation the slow way: hooks on modules, all activations stacked, one direct solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def io(model: nn.Module, names: list[str], data: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Input and output of each module, as (tokens, features) in float64."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = [t.detach().double().flatten(0, -2) for t in (args[0], output)]

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    with torch.no_grad():
        model(**data)
    for handle in handles:
        handle.remove()
    return found


def ridge(x: Tensor, e: Tensor, damping: float, fit_bias: bool) -> tuple[Tensor, Tensor]:
    """Change of weight (outputs, inputs) and bias, as one least-squares problem by QR.

    Rows of ``diag(sqrt(lambda))`` stand below the data; with a bias there is a column of ones,
    which is not damped.
    """
    centred = x - x.mean(0) if fit_bias else x
    inputs = x.shape[1]
    below = torch.diag((damping * centred.square().sum(0)).sqrt())
    above = x
    if fit_bias:
        above = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        below = torch.cat([below, torch.zeros(inputs, 1, dtype=x.dtype)], 1)
    target = torch.cat([e, torch.zeros(inputs, e.shape[1], dtype=e.dtype)])
    solution = torch.linalg.lstsq(torch.cat([above, below]), target, driver="gelsd").solution
    bias = solution[-1] if fit_bias else torch.zeros(e.shape[1], dtype=e.dtype)
    return solution[:inputs].T, bias


def relative(error: Tensor, target: Tensor) -> float:
    return float(error.norm() / target.norm())
