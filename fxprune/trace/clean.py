"""From what ``torch.export`` leaves to a graph worth analysing and rewriting.

Sub-graphs of ``no_grad`` and ``autocast`` regions are inlined, checks and no-ops go, constants that
stand for sizes or devices are normalised, and every tensor is read under its canonical name.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen

from fxprune.trace import dropout
from fxprune.trace.arguments import END, argument
from fxprune.trace.attributes import get_attribute, set_attribute
from fxprune.trace.calling import ExactCodeGen
from fxprune.trace.sizes import form, strides
from fxprune.trace.source import module_path
from fxprune.trace.storage import Memory

aten = torch.ops.aten
_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}
_SAME = {aten.alias.default, aten.lift_fresh_copy.default}
_CASTS = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.type_as.default,
    aten._to_copy.default,
}


def clean(
    graph_module: fx.GraphModule, model: nn.Module
) -> tuple[fx.GraphModule, dict[str, torch.Tensor], dict[str, str]]:
    """Normalise an exported graph.

    Returns:
        The clean GraphModule, its tensors by canonical FQN, and the aliases of tied tensors.
    """
    graph = graph_module.graph
    _inline_regions(graph_module)
    for node in list(graph.nodes):
        if node.target in _CHECKS or (node.op == "call_module" and "_guards" in str(node.target)):
            graph.erase_node(node)
    memory = Memory(graph)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _drop_no_op(node, memory)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.index.Tensor:
            _index_to_slice(graph_module, node, memory)
    graph.eliminate_dead_code()
    _follow_input_device(graph)
    return _canonical_tensors(graph_module, model)


def _inline_regions(graph_module: fx.GraphModule) -> None:
    hops = torch.ops.higher_order
    again = True
    while again:
        again = False
        for node in list(graph_module.graph.nodes):
            if node.target is hops.wrap_with_set_grad_enabled:
                given: Any = node.args
                enabled, body, *args = given
                _inline(graph_module, node, body, args, detach=not enabled)
                again = True
            elif node.target is hops.wrap_with_autocast and not node.args[2]:
                given = node.args
                _inline(graph_module, node, given[4], list(given[5:]), detach=False)
                again = True


def _inline(
    graph_module: fx.GraphModule, node: fx.Node, body: fx.Node, args: list[Any], detach: bool
) -> None:
    """Replace a region call by the nodes of its body."""
    graph = graph_module.graph
    with graph.inserting_before(node):
        outputs = _copy_body(graph_module, node, str(body.target), args)
        if detach:
            # Gradients stopped at the region before; they must stop there still.
            outputs = [_detached(graph, value) for value in outputs]
    for user in list(node.users):
        if user.target is operator.getitem:
            place: Any = user.args[1]
            user.replace_all_uses_with(outputs[place])
            graph.erase_node(user)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)


def _copy_body(
    graph_module: fx.GraphModule, node: fx.Node, name: str, args: list[Any]
) -> list[Any]:
    """Copy a region's nodes to the insertion point; return what the region returns."""
    region = get_attribute(graph_module, name)
    graph = graph_module.graph
    placeholders = [n for n in region.graph.nodes if n.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(placeholders, args, strict=True))
    for inner in region.graph.nodes:
        if inner.op in ("placeholder", "output"):
            continue
        if inner.op == "get_attr":
            # A region's own constants move up under a name that is free there.
            moved = f"{name}_{inner.target}".replace(".", "_")
            setattr(graph_module, moved, get_attribute(region, inner.target))
            values[inner] = graph.get_attr(moved)
        else:
            values[inner] = graph.node_copy(inner, lambda n: values[n])
        values[inner].meta = dict(inner.meta)
        if "nn_module_stack" in node.meta:
            values[inner].meta.setdefault("nn_module_stack", node.meta["nn_module_stack"])
    results: Any = region.graph.output_node().args[0]
    return [values[r] if isinstance(r, fx.Node) else r for r in results]


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    if not value.meta["val"].is_floating_point():
        return value
    detached = graph.call_function(aten.detach.default, (value,))
    detached.meta = dict(value.meta)
    return detached


def _copies(node: fx.Node, source: fx.Node, memory: Memory) -> bool:
    """Whether a result that is equal to its source must be a copy: one of the two is written to."""
    apart = memory.root(node) is not memory.root(source)
    return apart and (memory.written(node) or memory.written(source))


def _drop_no_op(node: fx.Node, memory: Memory) -> None:
    given: Any = node.args
    source = given[0] if given else None
    if not isinstance(source, fx.Node) or _copies(node, source, memory):
        return
    if node.target is aten.slice.Tensor:
        start, end, step = (argument(node, name) for name in ("start", "end", "step"))
        size = source.meta["val"].shape[argument(node, "dim")]
        whole = end is None or end == END or (isinstance(size, int) and _at_least(end, size))
        if step == 1 and start in (0, None) and whole:
            node.replace_all_uses_with(source)
    elif node.target in _SAME or _lies_as(node, source):
        node.replace_all_uses_with(source)
    elif node.target is aten.detach_.default and not source.meta["val"].requires_grad:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)  # dead code elimination spares what works in place
    elif node.target in dropout.DROPOUTS and dropout.silent(node):
        # What drops in training stays, to come back as a module that does.
        if dropout.META not in node.meta and not dropout.of_module(node):
            node.replace_all_uses_with(source)
            node.graph.erase_node(node)  # dead code elimination spares what draws random numbers
    elif node.target in _CASTS:
        _drop_cast(node, source)


def _lies_as(node: fx.Node, source: fx.Node) -> bool:
    """Whether a value is laid over memory anew just as its source lies there."""
    if node.target is not aten.as_strided.default or argument(node, "storage_offset") is not None:
        return False

    def axes(value: torch.Tensor) -> list[Any]:
        pairs = zip(form(value), strides(value), strict=True)
        return [pair if pair[0] != 1 else 1 for pair in pairs]  # there strides say nothing

    return axes(node.meta["val"]) == axes(source.meta["val"])


def _drop_cast(node: fx.Node, source: fx.Node) -> None:
    before, after = source.meta["val"], node.meta["val"]
    ordered = argument(node, "memory_format") not in (None, torch.preserve_format)
    if before.dtype == after.dtype and before.device == after.device and not ordered:
        # Inside its own module a cast stays: it matters again when the model changes dtype.
        own = module_path(node)
        node.replace_all_uses_with(source, delete_user_cb=lambda user: module_path(user) != own)


def _at_least(end: Any, size: int) -> bool:
    return isinstance(end, int) and end >= size


def _index_to_slice(graph_module: fx.GraphModule, node: fx.Node, memory: Memory) -> None:
    """``x[..., [i, i + 1]]`` with a constant run of positions is a slice."""
    given: Any = node.args
    source, indices = given
    if any(memory.written(index) for index in indices if index is not None):
        return
    places = [i for i, index in enumerate(indices) if index is not None]
    if len(places) != 1 or (held := _held(indices[places[0]], memory)) is None:
        return
    constant = get_attribute(graph_module, str(held.target))
    if isinstance(constant, nn.Parameter) or constant.is_meta or constant.dim() != 1:
        return
    size = source.meta["val"].shape[places[0]]
    if constant.dtype == torch.bool or not isinstance(size, int):
        return
    positions = [p % size for p in constant.tolist()]
    if not positions or positions != list(range(positions[0], positions[0] + len(positions))):
        return
    with graph_module.graph.inserting_before(node):
        end = positions[-1] + 1
        args = (source, places[0], positions[0], END if end == size else end)
        sliced = graph_module.graph.call_function(aten.slice.Tensor, args)
        sliced.meta = dict(node.meta)
        if _copies(node, source, memory):
            sliced = graph_module.graph.call_function(aten.clone.default, (sliced,))
            sliced.meta = dict(node.meta)
    node.replace_all_uses_with(sliced)


def _held(index: fx.Node, memory: Memory) -> fx.Node | None:
    """The constant that a value is, or is a copy of: decomposed programs copy theirs."""
    if index.target is aten.clone.default and isinstance(index.args[0], fx.Node):
        index = index.args[0]
    return index if index.op == "get_attr" and not memory.written(index) else None


def _follow_input_device(graph: fx.Graph) -> None:
    """Let factories and casts follow the first input's device, so that ``.to(device)`` works."""
    inputs = [
        n
        for n in graph.nodes
        if n.op == "placeholder" and isinstance(n.meta.get("val"), torch.Tensor)
    ]
    if not inputs:
        return
    home = inputs[0].meta["val"].device
    device: fx.Node | None = None

    def follow() -> fx.Node:
        nonlocal device
        if device is None:
            last = [n for n in graph.nodes if n.op == "placeholder"][-1]
            with graph.inserting_after(last):
                device = graph.call_function(getattr, (inputs[0], "device"))
            device.meta = {"val": home}
        return device

    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.kwargs.get("device") == home:
            node.update_kwarg("device", follow())
        if node.target is aten.to.device and node.args[1] == home:
            node.update_arg(1, follow())


def _canonical_tensors(
    graph_module: fx.GraphModule, model: nn.Module
) -> tuple[fx.GraphModule, dict[str, torch.Tensor], dict[str, str]]:
    """Read every tensor once, under its canonical name, from a fresh module hierarchy."""
    graph = graph_module.graph
    names, aliases = _names(model)
    root = nn.Module()
    tensors: dict[str, torch.Tensor] = {}
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value = get_attribute(graph_module, str(node.target))
        if not isinstance(value, torch.Tensor):
            set_attribute(root, str(node.target), value)
            continue
        name = names.get(id(value)) or _of_constant(str(node.target), model)
        if name in first:
            node.replace_all_uses_with(first[name])
            graph.erase_node(node)
            continue
        first[name] = node
        node.target = name
        tensors[name] = value
        set_attribute(root, name, value)
    _sort_tensors_first(graph)
    codegen = copy.copy(graph._codegen)
    if type(codegen) is _PyTreeCodeGen:
        codegen = ExactCodeGen(codegen.pytree_info)
    graph.set_codegen(codegen)
    clean_module = fx.GraphModule(root, graph, class_name=type(model).__name__)
    clean_module.meta.update(graph_module.meta)
    clean_module.graph.lint()
    # The model's own order, whatever order the graph reads them in.
    place = {name: i for i, name in enumerate(names.values())}
    ordered = sorted(tensors, key=lambda name: place.get(name, len(place)))
    return clean_module, {name: tensors[name] for name in ordered}, aliases


def _of_constant(name: str, model: nn.Module) -> str:
    """A constant's name: not inside a layer of torch, which comes back without."""
    path, _, leaf = name.rpartition(".")
    try:
        holder = model.get_submodule(path)
    except AttributeError:
        return name
    of_torch = path and type(holder).__module__.startswith("torch.nn.modules")
    return name.replace(".", "_") if of_torch and not hasattr(holder, leaf) else name


def _names(model: nn.Module) -> tuple[dict[int, str], dict[str, str]]:
    """Canonical name by ``id`` of every tensor of the model, and aliases of tied ones."""
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    lists: tuple[Callable[..., Any], ...] = (model.named_parameters, model.named_buffers)
    for listing in lists:
        for name, tensor in listing(remove_duplicate=False):
            canonical = names.setdefault(id(tensor), name)
            if canonical != name:
                aliases[name] = canonical
    return names, aliases


def _sort_tensors_first(graph: fx.Graph) -> None:
    """``get_attr`` nodes ahead of their users: a merged one may have stood later."""
    start = next(iter(graph.nodes))
    for node in reversed([n for n in graph.nodes if n.op == "get_attr"]):
        if node is not start:
            start.prepend(node)
            start = node
