"""The ops that branches are told by."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}
ATTENTION = {aten.scaled_dot_product_attention}
PRODUCTS = {aten.matmul, aten.mm, aten.bmm, aten.baddbmm, aten.einsum}
CONVOLUTIONS = {
    aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d, aten._convolution,
}  # fmt: skip
WEIGHTED = {*PRODUCTS, *CONVOLUTIONS, aten.linear, aten.addmm, aten._grouped_mm}


def packet(node: fx.Node) -> object:
    """The op without its overload; None of what is no ATen op."""
    return getattr(node.target, "overloadpacket", None)
