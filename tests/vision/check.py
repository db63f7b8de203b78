"""A proof of its own for pruned models; it shares nothing with the library.

Which places a smaller tensor has left is found by comparing values, the lost ones are zeroed in the
original module, and the two models run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def lost(small: torch.Tensor, big: torch.Tensor, axis: int) -> list[int]:
    """The places of that axis that ``small`` has no more; values differ from place to place."""
    rows, all_rows = (t.movedim(axis, 0).reshape(t.shape[axis], -1) for t in (small, big))
    gone, place = [], 0
    for row in rows:
        while not torch.isin(row, all_rows[place]).all():
            gone.append(place)
            place += 1
        place += 1
    return [*gone, *range(place, len(all_rows))]


def masked(model: nn.Module, small: nn.Module) -> dict[str, torch.Tensor]:
    """The original's parameters by name, zero at every place that the smaller model lost."""
    theirs = dict(small.named_parameters())
    result = {}
    for name, parameter in model.named_parameters():
        mine = result[name] = parameter.detach().clone()
        if name in theirs:
            for axis in range(mine.dim()):
                if mine.shape[axis] != theirs[name].shape[axis]:
                    gone = lost(theirs[name].detach(), parameter.detach(), axis)
                    mine.index_fill_(axis, torch.tensor(gone), 0.0)
    return result


class NormsOverWhatIsKept(TorchFunctionMode):
    """Layer and group norms leave out the places whose weight is zero."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.layer_norm:
            return self.layer_norm(*args, **kwargs)
        if func is F.group_norm:
            return self.group_norm(*args, **kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def layer_norm(
        x: torch.Tensor,
        shape: Any,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        there = (weight != 0).to(x.dtype)
        return normalised(x, there, (-1,), eps) * weight + (0 if bias is None else bias)

    @staticmethod
    def group_norm(
        x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
    ) -> torch.Tensor:
        apart = x.unflatten(1, (groups, -1)).flatten(3)
        there = (weight != 0).to(x.dtype).view(groups, -1, 1).expand(apart.shape[1:])
        column = (-1, *[1] * (x.dim() - 2))
        result = normalised(apart, there, (-2, -1), eps).view(x.shape)
        return result * weight.view(column) + bias.view(column)


def normalised(
    x: torch.Tensor, there: torch.Tensor, axes: tuple[int, ...], eps: float
) -> torch.Tensor:
    """Mean and variance over those places alone."""
    count = there.sum(axes, keepdim=True).clamp(min=1)
    mean = (x * there).sum(axes, keepdim=True) / count
    variance = ((x - mean).square() * there).sum(axes, keepdim=True) / count
    return (x - mean) * there / (variance + eps).sqrt()


@torch.no_grad()
def error(model: nn.Module, small: nn.Module, *args: torch.Tensor) -> float:
    """Largest difference of any output, relative to the largest value of that output.

    Raises:
        AssertionError: the outputs are built otherwise, have other shapes or are not finite.
    """
    values = masked(model, small)
    with NormsOverWhatIsKept():
        wanted = torch.func.functional_call(model, values, args)
    (wants, make), (gots, theirs) = map(pytree.tree_flatten, (wanted, small(*args)))
    assert make == theirs
    worst = 0.0
    for want, got in zip(wants, gots, strict=True):
        assert got.shape == want.shape
        scale = want.abs().max()
        assert scale > 0, "all zero: that proves nothing"
        assert scale.isfinite()
        assert got.isfinite().all()
        worst = max(worst, float((want - got).abs().max() / scale))
    return worst
