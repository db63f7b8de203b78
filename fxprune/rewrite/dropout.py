"""Dropout that the model calls as a function comes back as modules, which know of training mode.

A node of a graph traced in evaluation mode has that mode for ever. See
:mod:`fxprune.trace.dropout` for how it is known what the node does in training.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from fxprune.trace.attributes import get_attribute
from fxprune.trace.dropout import ATTENTION, DROPOUTS, META
from fxprune.trace.source import module_path
from fxprune.trace.traced import Traced

aten = torch.ops.aten
# Channels are dropped whole, which torch has a class for by the number of axes.
_FEATURES = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


class AttentionDropout(nn.Module):
    """The probability of dropout that a call of attention is given: 0 in evaluation mode.

    Attributes:
        p: the probability in training mode.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self) -> float:
        """The probability in the mode that the module is in."""
        return self.p if self.training else 0.0

    def extra_repr(self) -> str:
        """As ``nn.Dropout`` shows itself."""
        return f"p={self.p}"


def restore(traced: Traced, graph: fx.Graph) -> dict[str, nn.Module]:
    """Let a rewritten graph drop in training mode what the original does.

    Args:
        traced: the original.
        graph: the rewritten graph, changed in place.

    Returns:
        The new modules by the paths that the graph calls: ``dropout`` or ``attention_dropout``
        below the module whose code calls the function, with a number where the name is taken.
    """
    made: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or META not in node.meta:
            continue
        if node.target in DROPOUTS:
            path = _free(traced, node, "dropout", made)
            made[path] = _module(node)
            with graph.inserting_before(node):
                call = graph.create_node("call_module", path, (node.args[0],))
            call.meta.update(node.meta)
            call.meta.pop("torch_fn", None)
            node.replace_all_uses_with(call)
            graph.erase_node(node)
        elif node.target is ATTENTION:
            path = _free(traced, node, "attention_dropout", made)
            made[path] = AttentionDropout(node.meta[META])
            with graph.inserting_before(node):
                p = graph.create_node("call_module", path)
            p.meta = {"val": 0.0, "nn_module_stack": node.meta.get("nn_module_stack", {})}
            if len(node.args) > 4:
                node.update_arg(4, p)
            else:
                node.update_kwarg("dropout_p", p)
    return made


def _module(node: fx.Node) -> nn.Module:
    packet = node.target.overloadpacket.__name__  # type: ignore[union-attr]
    p, inplace = node.meta[META], packet.endswith("_")
    name = packet.removesuffix("_")
    if name == "alpha_dropout":
        return nn.AlphaDropout(p, inplace)
    if name == "feature_alpha_dropout":
        return nn.FeatureAlphaDropout(p, inplace)
    rank = node.meta["val"].dim()
    if name == "feature_dropout" and rank > 2:
        return _FEATURES.get(rank, nn.Dropout3d)(p, inplace)
    return nn.Dropout(p, inplace)  # of two axes, each element is a channel


def _free(traced: Traced, node: fx.Node, name: str, made: dict[str, nn.Module]) -> str:
    """A path below the module that made a node which neither it nor the graph has yet."""
    inside = module_path(node).partition("@")[0]
    try:
        owner = get_attribute(traced.module, inside) if inside else traced.module
    except AttributeError:
        inside, owner = "", traced.module
    number = 0
    while True:
        leaf = f"{name}_{number}" if number else name
        path = f"{inside}.{leaf}" if inside else leaf
        # One of an earlier rewriting has its call here.
        ours = isinstance(getattr(owner, leaf, None), AttentionDropout)
        if path not in made and (ours or not hasattr(owner, leaf)):
            return path
        number += 1
