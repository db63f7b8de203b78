"""From element scores of parameters to one score per unit of a group, by layout.

Three steps, all vectorised: an element-score tensor is reduced to the axis of a site
(:func:`collapse`), the vector along that axis is folded onto the units of the group's dim
(:func:`fold`), and the members of the group are reduced to one score (:func:`aggregate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fxprune.axes.dims import Dim, Layout, Sum, atoms, resolve
from fxprune.errors import CriterionError

Aggregate = Literal["sum", "mean", "max", "prod", "last"]
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
Reduce = Literal["sum", "max", "min"]

_REDUCE: dict[str, Callable[..., Tensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
}
_EMPTY = {"sum": 0.0, "max": -torch.inf, "min": torch.inf}


def collapse(elements: Tensor, axis: int, how: Reduce = "sum") -> Tensor:
    """Reduce a tensor over every axis but one.

    Args:
        elements: scores of the elements of a parameter, shape of the parameter.
        axis: the axis that stays.
        how: ``sum``, ``max`` or ``min``.

    Returns:
        One number per position of the axis, shape (elements.shape[axis],).
    """
    others = [i for i in range(elements.ndim) if i != axis]
    # sum(dim=[]) would sum over everything.
    return _REDUCE[how](elements, dim=others) if others else elements


def fold(vector: Tensor, layout: Layout, dim: Dim, how: Reduce = "sum") -> Tensor:
    """Reduce the positions of an axis to the units of a dim.

    Follows the layout: with ``layout = Product(kv, repeat, head_dim)`` the positions of query
    heads 0, 1, 2 go to KV head 0, never those of heads 0, 3, 6. Where the dim occurs more than
    once in the axis, the occurrences are reduced alike.

    Args:
        vector: one number per position of the axis, shape (layout.size,).
        layout: how the axis is made of dims.
        dim: the dim whose units are scored, unbound.
        how: ``sum``, ``max`` or ``min`` of a unit's positions.

    Returns:
        One number per unit, shape (dim.size,).
    """
    layout = resolve(layout)
    if layout is dim:
        return vector
    parts = () if isinstance(layout, Dim) else layout.parts
    holders = [i for i, part in enumerate(parts) if any(a is dim for a in atoms(part))]
    if not holders:
        return vector.new_full((dim.size,), _EMPTY[how])
    sizes = [part.size for part in parts]
    if isinstance(layout, Sum):
        vectors = torch.split(vector, sizes)
    else:
        factors = vector.reshape(sizes)
        vectors = tuple(collapse(factors, i, how) for i in range(len(parts)))
    pieces = [fold(vectors[i], parts[i], dim, how) for i in holders]
    return _REDUCE[how](torch.stack(pieces), dim=0) if len(pieces) > 1 else pieces[0]


def aggregate(members: Sequence[Tensor], how: Aggregate) -> Tensor:
    """One score per unit from the scores of the group's members (sites).

    Args:
        members: one float32 vector per site, each of shape (size,), in graph order.
        how: ``sum``, ``mean``, ``max`` or ``prod`` over the members, or ``last``: the last member
            alone (LLM-Pruner, section 3.2 and table 7).

    Returns:
        float32 tensor of shape (size,).

    Raises:
        CriterionError: if a product is too small for float32, which would make all units equal.
    """
    if how == "last":
        return members[-1]
    stack = torch.stack(tuple(members))
    if how == "sum":
        return stack.sum(0)
    if how == "mean":
        return stack.mean(0)
    if how == "max":
        return stack.amax(0)
    product = stack.double().prod(0).float()
    if ((product == 0) & (stack != 0).all(0)).any():
        raise CriterionError(
            f"the product over {len(members)} members is too small for float32: "
            "use aggregate='sum', 'mean' or 'max'"
        )
    return product
