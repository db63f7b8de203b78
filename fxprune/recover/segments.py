"""Gradient checkpointing of graphs: each layer is computed twice and keeps only its inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from fxprune.errors import RecoveryError
from fxprune.trace.source import module_path

_LAYER = re.compile(r"(.+?\.\d+)(?:\.|$)")


class Segmented(nn.Module):
    """A graph run layer by layer under ``torch.utils.checkpoint``, on the graph's own modules.

    Args:
        module: what holds the graph, such as PEFT's model around it; its parameters are this one's.
        graph_module: the graph itself, on the device where it will run.

    Raises:
        RecoveryError: fewer than two layers are found in the graph.
    """

    def __init__(self, module: nn.Module, graph_module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module
        self._run: list[Callable[..., Any]] = [_segmented(graph_module)]  # hidden from nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the graph's."""
        return self._run[0](*args, **kwargs)


def _segmented(graph_module: fx.GraphModule) -> fx.GraphModule:
    segments = _segments(graph_module)
    if len(set(segments.values())) < 3:
        raise RecoveryError(
            "gradient checkpointing goes layer by layer, and the graph has no layers in a list: "
            "leave it out"
        )
    split = split_module(graph_module, graph_module, segments.__getitem__)
    split.graph.set_codegen(graph_module.graph._codegen)
    split.recompile()
    for name, part in list(split.named_children()):
        if isinstance(part, fx.GraphModule):
            setattr(split, name, _Checkpointed(part))
    return split


def _segments(graph_module: fx.GraphModule) -> dict[fx.Node, int]:
    """Number of the segment of each node: those of one layer, which follow each other."""
    found: dict[fx.Node, int] = {}
    layer, number = "", 0
    for node in graph_module.graph.nodes:
        match = _LAYER.match(module_path(node))
        here = match[1] if match else ("" if module_path(node) else layer)
        if here != layer and node.op not in ("placeholder", "get_attr", "output"):
            layer, number = here, number + 1
        found[node] = number
    return found


class _Checkpointed(nn.Module):
    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.part, *args, use_reentrant=False)


def switch(module: nn.Module, what: str) -> Callable[..., Any]:
    """What enables or disables gradient checkpointing in a model of transformers.

    Raises:
        RecoveryError: it has none.
    """
    # Its name before transformers 5.2x, and after.
    for name in (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}"):
        found: Callable[..., Any] | None = getattr(module, name, None)
        if found is not None and getattr(module, "supports_gradient_checkpointing", True):
            return found
    raise RecoveryError(f"{type(module).__name__} has no gradient checkpointing: leave it out")


def switched_on(module: nn.Module) -> bool:
    """Whether it is enabled."""
    return any(getattr(each, "gradient_checkpointing", False) for each in module.modules())
