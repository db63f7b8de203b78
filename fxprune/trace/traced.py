"""The value that tracing gives and every later stage reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxprune.trace.guards import Guards
from fxprune.trace.sizes import Sizes


@dataclass(eq=False)
class Traced:
    """A model as a clean ATen graph that shares its tensors with the original module.

    Attributes:
        graph_module: the graph; called like the original model. Parameters are ``get_attr`` nodes
            under their fully qualified names (FQN); ``node.meta`` keeps module path and source.
        module: the original model.
        args: example positional inputs.
        kwargs: example keyword inputs.
        tensors: canonical FQN to every parameter, buffer and constant that the graph reads; a tied
            tensor appears once.
        aliases: every other FQN of a tied tensor to its canonical one.
        sizes: the integer stand-ins of symbolic sizes.
        guards: the inputs for which the graph is the model. The graph refuses all others.
        original: the whole model, if this is one without some residual branches, see
            :func:`fxprune.bypass`.
        removed: names of those, in graph order.
        dropped: canonical names of the parameters that went along.
    """

    graph_module: fx.GraphModule
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    aliases: dict[str, str]
    sizes: Sizes
    guards: Guards = field(default_factory=Guards)
    original: Traced | None = None
    removed: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def canonical(self, name: str) -> str:
        """The canonical FQN of a parameter or buffer, whichever of its names is given."""
        return self.aliases.get(name, name)
