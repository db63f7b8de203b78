"""From a plan to a physically smaller GraphModule."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.op import find_op
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.rewrite import biases, dropout, leaves, shapes
from fxprune.rewrite.apart import set_apart
from fxprune.rewrite.history import Step, copied, remember
from fxprune.rewrite.planned import planned
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.traced import Traced
from fxprune.trace.unhit import left_of
from fxprune.trace.views import relax


def rewrite(
    traced: Traced, plan: Plan, *, share: bool = True, consume: bool = False
) -> fx.GraphModule:
    """Apply a plan: a smaller GraphModule that computes what the original does without the units.

    Leaf modules (``nn.Linear``, norms, embeddings, convolutions) are restored as ``call_module``
    under their own names, so hooks, PEFT and quantisers find them. The result trains, compiles and
    takes other batch and sequence sizes than the example. A bias that the plan adds is of zeros.
    Residual branches and blocks that the plan removes are bypassed first.

    Args:
        traced: the original. It is not changed.
        plan: what stays.
        share: share the tensors that lose nothing with the original, which saves their memory;
            training one of the two then changes the other. False copies them, one by one.
        consume: free every original tensor as soon as its smaller copy exists. Peak memory is then
            the weights and the largest tensor, and the original model cannot be used afterwards.

    Returns:
        The smaller GraphModule, in the original's training or evaluation mode.

    Raises:
        PlanError: the plan does not fit the model.
        DepthError: the plan removes a branch or block that the model has not.
        RewriteError: an op does not take the smaller sizes, or the plan adds a bias to what is no
            Linear without one.
    """
    groups, resize = planned(traced, plan)
    history = remember(traced, Step.of(groups, resize, plan))
    traced = groups.traced
    biases.check(traced, plan.biases)
    # Everything that can fail runs on meta tensors, before any weight is touched.
    affected = _affected(resize, traced.graph_module.graph)
    calls = leaves.ready(traced, affected)
    skeleton, graph, nodes = _skeleton(traced, resize, affected, calls)
    read = _reader(traced, resize, skeleton)
    shapes.propagate(read, graph, nodes, resize, affected.__contains__)
    if consume and traced.original is not None:
        for name in traced.dropped:
            gone = traced.original.tensors[name]
            gone.data = gone.new_empty(0)
    tensors = _slice_tensors(traced, groups, resize, consume)
    modules = leaves.restore(traced, graph, tensors, calls.values())
    biases.add(modules, plan.biases)
    modules |= dropout.restore(traced, graph)
    small = _assemble(traced, skeleton, graph, tensors, modules)
    if not share and not consume:
        set_apart(small, traced.module, traced.tensors.values())
    history.attach(small)
    return small


def _skeleton(
    traced: Traced, resize: Resizer, affected: set[fx.Node], calls: Mapping[fx.Node, leaves.Call]
) -> tuple[nn.Module, fx.Graph, dict[fx.Node, fx.Node]]:
    """A module with what the graph reads beside tensors, the patched graph, and old nodes to new.

    The graph has no code yet: to generate it takes as long as much of the rest.
    """
    within = set(itertools.chain.from_iterable(call.nodes for call in calls.values()))
    sources = {call.source for call in calls.values()}
    root = nn.Module()
    _copy_regions(traced, root)
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for old in traced.graph_module.graph.nodes:
        if old in calls:
            nodes[old] = calls[old].place(graph, nodes[calls[old].source])
        elif old in within or (
            old.op == "get_attr" and old not in sources and within.issuperset(old.users)
        ):
            continue  # the modules hold it
        else:
            nodes[old] = copied(graph, old, nodes)
    graph.set_codegen(copy.copy(traced.graph_module.graph._codegen))
    graph.owning_module = root  # type: ignore[assignment]
    for old, new in list(nodes.items()):
        if new.op == "call_function" and old in affected and (patch := find_op(old.target).patch):
            nodes[old] = patch(resize, old, new) or new
    relax(graph)
    return root, graph, nodes


def _reader(traced: Traced, resize: Resizer, skeleton: nn.Module) -> Callable[[str], Any]:
    """What a name stands for in the patched graph, tensors in their new shapes on ``meta``."""

    def read(name: str) -> Any:
        tensor = traced.tensors.get(name)
        if tensor is None:
            return get_attribute(skeleton, name)
        shape = [resize.size(layout) for layout in resize.inferred.tensors[name]]
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    return read


def _copy_regions(traced: Traced, root: nn.Module) -> None:
    """Sub-graphs of control flow (``torch.cond``): frozen, so they stay as they are."""
    for node in traced.graph_module.graph.nodes:
        if node.op == "get_attr" and node.target not in traced.tensors:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", ".*LeafSpec", FutureWarning
                )  # torch copies its own
                value = copy.deepcopy(get_attribute(traced.graph_module, str(node.target)))
            set_attribute(root, str(node.target), value)


def _affected(resize: Resizer, graph: fx.Graph) -> set[fx.Node]:
    """The nodes of which any axis, or of whose inputs any axis, loses units."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        axes = resize.inferred.axes.get(node, ())
        layouts = itertools.chain(*axes) if isinstance(axes, list) else axes
        if any(map(resize.changed, layouts)):
            found.add(node)
            found.update(node.users)
        if resize.empty and left_of(node, resize.empty):
            found.add(node)
    return found


def _slice_tensors(
    traced: Traced, graph: DependencyGraph, resize: Resizer, consume: bool
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in traced.tensors.items():
        layouts = graph.layouts[name]
        if not any(map(resize.changed, layouts)):
            tensors[name] = tensor
            continue
        with torch.no_grad():
            small = resize.slice(tensor, layouts)
        if isinstance(tensor, nn.Parameter):
            small = nn.Parameter(small, requires_grad=tensor.requires_grad)
        tensors[name] = small
        if consume:
            tensor.data = tensor.new_empty(0)
    return tensors


def _assemble(
    traced: Traced,
    skeleton: nn.Module,
    graph: fx.Graph,
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
) -> fx.GraphModule:
    """A GraphModule of what the graph uses, and nothing else."""
    graph.owning_module = None
    graph.eliminate_dead_code(lambda node: bool(node.users) or _acts(node, modules))  # lints first
    # Empty at first, for it would copy every attribute of a root.
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=type(traced.module).__name__)
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "call_module":
            set_attribute(module, name, modules[name])
        elif node.op == "get_attr":
            tensor = tensors.get(name)
            value = get_attribute(skeleton, name) if tensor is None else tensor
            set_attribute(module, name, value)
    module.graph = graph
    module.train(traced.module.training)
    return module


def _acts(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node does something beside giving a value."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    return node.is_impure()
