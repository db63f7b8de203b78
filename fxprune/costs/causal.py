"""Whether an attention is causal, found by computing its mask on the example's shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.costs.attention import Attention, is_product
from fxprune.errors import CostError
from fxprune.trace.arguments import argument
from fxprune.trace.attributes import get_attribute
from fxprune.trace.source import location


class CausalTest:
    """Computes masks; what several layers share is computed once.

    Args:
        module: the traced graph.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._values: dict[fx.Node, Any] = {}

    def __call__(self, attention: Attention) -> bool:
        """Whether no query sees a later key, and there are as many queries as keys.

        Scores, parameters and everything else that a model computes from its input's content are
        0, so that only the mask is left. Token ids and given attention masks are 1.

        Raises:
            CostError: the mask hangs on a buffer without values (on ``meta``).
        """
        node = attention.node
        if attention.scores is None:
            if argument(node, "is_causal"):
                return True
            mask = argument(node, "attn_mask")
            if not isinstance(mask, fx.Node):
                return False
            logits = self._value(mask)
            if logits.dtype == torch.bool:
                logits = torch.zeros(logits.shape).masked_fill(~logits, -torch.inf)
        else:
            logits = self._value(_logits(node))
        if logits.dim() < 2 or logits.shape[-1] != logits.shape[-2] or logits.shape[-1] < 2:
            return False
        seen = logits.float().softmax(-1)
        return not seen.triu(1).nan_to_num().any()

    def _value(self, node: fx.Node) -> Any:
        """The value of a node; all that it needs is computed first, without recursion."""
        todo = [node]
        while todo:
            here = todo[-1]
            if here in self._values:
                todo.pop()
                continue
            sources = [] if _is_content(here) else here.all_input_nodes
            missing = [source for source in sources if source not in self._values]
            if missing:
                todo += missing
                continue
            self._values[here] = self._computed(here)
            todo.pop()
        return self._values[node]

    def _computed(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if _is_content(node):
            return pytree.tree_map_only(torch.Tensor, _filled, value)
        if node.op == "get_attr":
            tensor = get_attribute(self._module, str(node.target))
            if not isinstance(tensor, torch.Tensor):
                return tensor
            if tensor.is_floating_point():
                return torch.zeros(tensor.shape, dtype=tensor.dtype)
            if tensor.is_meta:
                raise CostError(
                    f"whether attention is causal depends on the buffer {node.target}, which has "
                    "no values on meta"
                )
            return tensor.cpu()
        if isinstance(value, torch.device):
            return torch.device("cpu")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._values[n])
        assert callable(node.target)
        try:
            with torch.no_grad():
                return node.target(*args, **_on_cpu(kwargs))
        except (RuntimeError, TypeError, ValueError) as error:
            raise CostError(
                f"the mask cannot be computed: {node.target} at {location(node) or node.name}: "
                f"{error}"
            ) from error


def _logits(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _is_content(node: fx.Node) -> bool:
    return node.op == "placeholder" or is_product(node)


def _filled(value: torch.Tensor) -> torch.Tensor:
    shape = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    return torch.full(shape, 0 if value.is_floating_point() else 1, dtype=value.dtype)


def _on_cpu(kwargs: Any) -> Any:
    return pytree.tree_map_only(torch.device, lambda _: torch.device("cpu"), kwargs)
