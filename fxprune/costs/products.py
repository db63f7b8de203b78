"""Multiply-accumulates of every matrix product and convolution of a graph."""

from __future__ import annotations

import re

import torch
from torch import fx

from fxprune.axes.polynomial import Polynomial
from fxprune.costs.sizes import ValueSizes
from fxprune.ops.op import find_op, uncounted

aten = torch.ops.aten

# Of these a count would have to know the inside.
_OPAQUE = re.compile(
    r"^(lstm|gru|rnn_\w+|\w+_cell|bilinear|_trilinear|cdist|_cdist_forward|chain_matmul|kron|addbmm"
    r"|conv_tbc|_scaled_mm|_scaled_grouped_mm|_int_mm|_weight_int\w+|_convert_weight\w*|linalg_\w+"
    r"|_transformer_encoder_layer_fwd|_native_multi_head_attention|_sparse\w+|sspaddmm|hspmm)$"
)
_HARMLESS = re.compile(r"^linalg_(vector_norm|norm|cross|diagonal)$")


def packet_name(node: fx.Node) -> str:
    """``matmul`` of ``aten.matmul.default``; "" for what is not an op."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return str(name)


def multiplies(sizes: ValueSizes, node: fx.Node) -> Polynomial | None:
    """Multiply-accumulates of one op, or None for one that is not a product.

    Raises:
        CostError: the op may hold products that cannot be counted.
    """
    if node.op != "call_function":
        return None
    macs = find_op(node.target).macs
    if macs is not None:
        return macs(sizes, node)
    namespace = getattr(node.target, "namespace", "aten")
    opaque = _OPAQUE.match(packet_name(node)) and not _HARMLESS.match(packet_name(node))
    if opaque or namespace not in ("aten", "prims", "_operator", "builtins"):
        raise uncounted(node, "its multiply-accumulates are not known")
    return None
