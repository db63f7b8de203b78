"""From a plan to a physically smaller GraphModule."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from fxprune.axes import dims
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from fxprune.rewrite import biases, leaves, shapes, views
from fxprune.rewrite.patches import find_patch
from fxprune.rewrite.resize import Resizer, planned
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.traced import Traced


def rewrite(traced: Traced, plan: Plan, *, consume: bool = False) -> fx.GraphModule:
    """Apply a plan: a smaller GraphModule that computes what the original does without the units.

    Leaf modules (``nn.Linear``, norms, embeddings, convolutions) are restored as ``call_module``
    under their own names, so hooks, PEFT and quantisers find them. The result trains, compiles and
    takes other batch and sequence sizes than the example. A bias that the plan adds is of zeros.
    Residual branches and blocks that the plan removes are bypassed first.

    Args:
        traced: the original. It is not changed, and tensors that lose nothing are shared with it.
        plan: what stays.
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
    traced = groups.traced
    biases.check(traced, plan.biases)
    # Everything that can fail runs on meta tensors, before any weight is touched.
    affected = {n for n in traced.graph_module.graph.nodes if _affected(resize, n)}
    skeleton, graph, nodes = _skeleton(traced, resize, affected)
    shapes.propagate(skeleton, graph, nodes, resize, affected.__contains__)
    if consume and traced.original is not None:
        for name in traced.dropped:
            gone = traced.original.tensors[name]
            gone.data = gone.new_empty(0)
    tensors = _slice_tensors(traced, groups, resize, consume)
    return _assemble(traced, skeleton, graph, tensors, plan.biases)


def _skeleton(
    traced: Traced, resize: Resizer, affected: set[fx.Node]
) -> tuple[nn.Module, fx.Graph, dict[fx.Node, fx.Node]]:
    """``meta`` tensors of the new shapes, the patched graph over them, and old nodes to new.

    The graph has no code yet: to generate it takes as long as much of the rest.
    """
    root = nn.Module()
    for name, tensor in traced.tensors.items():
        layouts = resize.inferred.tensors[name]
        small = torch.empty(
            [resize.size(layout) for layout in layouts], dtype=tensor.dtype, device="meta"
        )
        set_attribute(root, name, small)
    _share_regions(traced, root)
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    for old in traced.graph_module.graph.nodes:
        nodes[old] = graph.node_copy(old, lambda n: nodes[n])
        nodes[old].meta = dict(old.meta)
    graph.set_codegen(copy.copy(traced.graph_module.graph._codegen))
    graph.owning_module = root  # type: ignore[assignment]
    for old, new in list(nodes.items()):
        patch = find_patch(old.target) if old.op == "call_function" else None
        if patch and old in affected:
            nodes[old] = patch(resize, old, new) or new
    views.relax(graph)
    return root, graph, nodes


def _share_regions(traced: Traced, root: nn.Module) -> None:
    """Sub-graphs of control flow (``torch.cond``): frozen, so they stay as they are."""
    for node in traced.graph_module.graph.nodes:
        if node.op == "get_attr" and node.target not in traced.tensors:
            value = get_attribute(traced.graph_module, str(node.target))
            set_attribute(root, str(node.target), value)


def _affected(resize: Resizer, node: fx.Node) -> bool:
    """Whether any axis of the node or of its inputs loses units."""
    for value in (node, *node.all_input_nodes):
        axes = resize.inferred.axes.get(value, ())
        for each in axes if isinstance(axes, list) else [axes]:
            if any(resize.changed(layout) for layout in each):
                return True
    return False


def _slice_tensors(
    traced: Traced, graph: DependencyGraph, resize: Resizer, consume: bool
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in traced.tensors.items():
        layouts = graph.layouts[name]
        if not any(dim in resize.kept for layout in layouts for dim in dims.atoms(layout)):
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
    tensors: dict[str, torch.Tensor],
    added: tuple[str, ...],
) -> fx.GraphModule:
    """Real tensors and real leaf modules in place of the skeleton's."""
    root = nn.Module()
    for name, buffer in skeleton.named_buffers(recurse=False):
        if name not in tensors:
            set_attribute(root, name, buffer)  # kept numbers of an arange
    for name, tensor in tensors.items():
        set_attribute(root, name, tensor)
    _share_regions(traced, root)
    leaves.restore(traced, graph, root, tensors)
    biases.add(root, added)
    graph.owning_module = root  # type: ignore[assignment]
    graph.eliminate_dead_code()  # it lints first
    # It takes over what the graph uses, and nothing else.
    module = fx.GraphModule(root, graph, class_name=type(traced.module).__name__)
    module.train(traced.module.training)
    return module
