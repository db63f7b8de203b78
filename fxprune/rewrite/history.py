"""What a rewritten graph remembers of the model that it was made of, so that it can be saved.

A graph that is pruned again has plans that each speak of the graph before. What was pruned first
is kept without its weights: a copy of its graph and the shapes of its tensors. Then
:mod:`fxprune.rewrite.compose` can say all prunings as one plan for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.axes import positions
from fxprune.axes.positions import Units
from fxprune.data.loss import GraphLoss
from fxprune.data.loss_function import LossFunction
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import Shapes
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.traced import Traced

_KEY = "fxprune_history"


@dataclass(frozen=True, eq=False)
class Step:
    """One pruning.

    Attributes:
        plan: its plan, in terms of the model that it was given.
        shapes: of the tensors of that model without what the plan removes whole, by canonical name.
        parameters: which of them are parameters.
        stays: of the axes that lose units the positions that stay, by name and axis.
        dropped: canonical names of the parameters that went whole.
    """

    plan: Plan
    shapes: Shapes
    parameters: frozenset[str]
    stays: Mapping[tuple[str, int], Units]
    dropped: frozenset[str]

    @classmethod
    def of(cls, graph: DependencyGraph, resize: Resizer, plan: Plan) -> Step:
        """The step that a plan is, before it is taken.

        Args:
            graph: the groups, without what the plan removes whole.
            resize: what becomes of their axes.
            plan: the plan.
        """
        tensors = graph.traced.tensors
        return cls(
            plan,
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            frozenset(n for n, t in tensors.items() if isinstance(t, nn.Parameter)),
            {
                (name, axis): positions.index(layout, resize.kept)
                for name in tensors
                for axis, layout in enumerate(graph.layouts[name])
                if resize.changed(layout)
            },
            graph.traced.dropped,
        )


@dataclass(frozen=True, eq=False)
class History:
    """The model that was pruned first, without weights, and all that was done to it.

    Attributes:
        graph: a copy of its graph.
        rest: what else was traced, every tensor on ``meta``; ``graph_module`` has no graph.
        steps: the prunings, in order.
        code: of the graph that came out. If it is another now, somebody has edited the graph, and
            it is no longer what the steps make.
    """

    graph: fx.Graph
    rest: Traced
    steps: tuple[Step, ...]
    code: str = ""

    def original(self) -> Traced:
        """The model that was pruned first, without weights."""
        whole = fx.GraphModule(self.rest.graph_module, self.graph)
        return replace(self.rest, graph_module=whole, cache={})

    def attach(self, graph_module: fx.GraphModule) -> None:
        """Let a graph remember this."""
        graph_module.meta[_KEY] = replace(self, code=graph_module.code)

    def __deepcopy__(self, memo: Any) -> History:
        return self

    def __reduce__(self) -> Any:
        # What nodes know of symbolic sizes cannot be pickled, and nobody should load a pickle.
        return type(None), ()


def history_of(module: nn.Module) -> History | None:
    """What a rewritten graph remembers; None for anything else, or if it was edited since."""
    known = vars(module).get("meta", {}).get(_KEY) if isinstance(module, fx.GraphModule) else None
    return known if isinstance(known, History) and known.code == module.code else None


def pruned_first(module: nn.Module) -> nn.Module:
    """Of a rewritten graph the model that it was made of, without weights; else the module itself.

    The former is of the original's class and has its config, but cannot run.
    """
    known = history_of(module)
    return module if known is None else known.rest.module


def remember(traced: Traced, step: Step) -> History:
    """What the graph that a step leads to must remember.

    Args:
        traced: what the step is taken from, with its weights still.
        step: the step.
    """
    whole = traced.original or traced
    known = history_of(whole.module)
    if known is not None:
        return replace(known, steps=(*known.steps, step))
    return begun(whole, step)


def without_weights(traced: Traced) -> Traced:
    """A copy of the whole model that was traced, every tensor on ``meta``."""
    return begun(traced.original or traced).original()


def begun(whole: Traced, *steps: Step) -> History:
    """What there is to remember of a model that these steps are taken from.

    Args:
        whole: the model, with its weights or without.
        steps: the prunings, in order.
    """
    if "without_weights" not in whole.cache:  # it serves every plan
        whole.cache["without_weights"] = _without_weights(whole)
    graph, rest = whole.cache["without_weights"]
    return History(graph, rest, steps)


def loss_before(model: nn.Module) -> LossFunction | None:
    """The loss of a graph that was pruned before: what its model's is; None for any other."""
    known = history_of(model)
    return None if known is None else GraphLoss(known.original())


def _without_weights(traced: Traced) -> tuple[fx.Graph, Traced]:
    blanks: dict[int, torch.Tensor] = {}

    def blank(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in blanks:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            blanks[id(tensor)] = made
        return blanks[id(tensor)]

    def example(value: Any) -> Any:
        return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value

    graph, root = fx.Graph(), nn.Module()
    nodes: dict[fx.Node, fx.Node] = {}
    for node in traced.graph_module.graph.nodes:
        nodes[node] = copied(graph, node, nodes)
        if node.op == "get_attr":
            name = str(node.target)
            value = traced.tensors.get(name)
            held = get_attribute(traced.graph_module, name) if value is None else blank(value)
            set_attribute(root, name, held)
    graph.set_codegen(traced.graph_module.graph._codegen)
    args, kwargs = pytree.tree_map(example, (traced.args, traced.kwargs))
    rest = replace(
        traced,
        graph_module=cast("fx.GraphModule", root),
        module=_shell(traced.module, blank),
        args=args,
        kwargs=kwargs,
        tensors={name: blank(tensor) for name, tensor in traced.tensors.items()},
        cache={},
    )
    return graph, rest


def _shell(module: nn.Module, blank: Any) -> nn.Module:
    """A module of the same class, with its config and the shapes of its tensors alone."""
    shell: nn.Module = object.__new__(type(module))
    nn.Module.__init__(shell)
    shell.training = module.training
    if "config" in vars(module):
        shell.config = module.config
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            set_attribute(shell, name, blank(tensor))
    return shell


def copied(graph: fx.Graph, old: fx.Node, nodes: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """What ``graph.node_copy`` gives, which is slower: it looks for symbols in the arguments."""
    new = graph.create_node(old.op, old.target, name=old.name, type_expr=old.type)
    new.args = fx.node.map_arg(old.args, nodes.__getitem__)
    if old.kwargs:
        new.kwargs = fx.node.map_arg(old.kwargs, nodes.__getitem__)
    new.meta.update(old.meta)
    return new
