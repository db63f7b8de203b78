"""Any product with a weight as one matrix product: ``Y = X W^T`` over rows (tokens, pixels)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fxprune.groups.consumers import Consumer
from fxprune.trace.arguments import argument

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv1d, aten.conv2d}


def convolves(consumer: Consumer) -> bool:
    """Whether the consumer is a convolution."""
    return consumer.source_axis == 1


def weight_matrix(consumer: Consumer, weight: Tensor) -> Tensor:
    """The weight as (outputs, inputs) or, of a convolution, (outputs, inputs * kernel)."""
    return weight.movedim((consumer.output_axis, consumer.site.axis), (0, 1)).flatten(1)


def weight_tensor(consumer: Consumer, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`weight_matrix`, in the layout of ``like``."""
    axes = (consumer.output_axis, consumer.site.axis)
    shape = like.movedim(axes, (0, 1)).shape
    return matrix.reshape(shape).movedim((0, 1), axes)


def input_rows(consumer: Consumer, x: Tensor, weight: Tensor) -> Tensor:
    """The activation as (rows, inputs * kernel), in float32 or float64.

    Args:
        consumer: the product.
        x: its activation.
        weight: the weight it meets, for the size of a kernel.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not convolves(consumer):
        return x.reshape(-1, x.shape[-1])
    options = {name: _pair(consumer, name) for name in ("stride", "padding", "dilation")}
    kernel = (*[1] * (4 - weight.dim()), *weight.shape[2:])
    columns = functional.unfold(x.reshape(*x.shape[:2], -1, x.shape[-1]), kernel, **options)
    return columns.transpose(1, 2).flatten(0, 1)


def output_rows(consumer: Consumer, y: Tensor) -> Tensor:
    """The product's result as (rows, outputs), in float32 or float64."""
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    return y.movedim(consumer.source_axis, -1).reshape(-1, y.shape[consumer.source_axis])


def output_tensor(consumer: Consumer, rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`output_rows`, in the shape and dtype of ``like``."""
    shape = like.movedim(consumer.source_axis, -1).shape
    return rows.reshape(shape).movedim(-1, consumer.source_axis).to(like.dtype)


def _pair(consumer: Consumer, name: str) -> tuple[int, int]:
    """An option of a convolution for two axes; one in 1-D stands at the second."""
    given: list[int] = list(argument(consumer.node, name))
    one = consumer.node.meta["val"].dim() == 3
    given = given * 2 if len(given) == 1 and not one else given
    neutral = 0 if name == "padding" else 1
    return (neutral, given[0]) if one else (given[0], given[1])
