"""What ONNX's exporter lacks for the ops of graphs, in ONNX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten


def table() -> dict[Any, Callable[..., Any]]:
    """Functions for ops that the exporter has none for, as it takes them."""
    found = {aten._grouped_mm.default: _grouped}
    fallback = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return found | ({fallback.default: _grouped} if fallback is not None else {})


def settle(graph: fx.Graph) -> None:
    """Let nothing depend on how values lie in memory: it changes where attention is decomposed."""
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    attention = aten.scaled_dot_product_attention.default
    for node in graph.find_nodes(op="call_function", target=attention):
        with graph.inserting_after(node):
            form: Any = {"memory_format": torch.contiguous_format}
            plain = graph.call_function(aten.clone.default, (node,), form)
        plain.meta = dict(node.meta)
        node.replace_all_uses_with(plain, lambda user, plain=plain: user is not plain)


def _grouped(
    rows: Any, weights: Any, ends: Any = None, bias: Any = None, out_dtype: int = -1
) -> Any:
    """The rows of each expert, which end where ``ends`` says, by its own matrix."""
    import onnxscript

    op: Any = onnxscript.opset18
    if ends is None or bias is not None or out_dtype != -1 or len(rows.shape) != 2:
        raise NotImplementedError("a grouped product of another form")
    whole = op.Cast(ends, to=7)
    found, start = [], op.Constant(value_ints=[0])
    for number in range(weights.shape[0]):
        end = op.Slice(whole, [number], [number + 1])
        own = op.Slice(rows, start, end, [0])
        found.append(op.MatMul(own, op.Gather(weights, op.Constant(value_int=number), axis=0)))
        start = end
    return op.Concat(*found, axis=0)
