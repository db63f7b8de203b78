"""Shape propagation through the rewritten graph, checked against the layouts.

Every node that the plan touches is run on ``meta`` tensors in which symbolic sizes have their
stand-in numbers; the shape it gives must be the one its layouts predict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from fxprune.errors import RewriteError
from fxprune.rewrite.resize import Resizer
from fxprune.trace.attributes import get_attribute
from fxprune.trace.source import location

_SLICES = {torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default}


def propagate(
    module: nn.Module,
    graph: fx.Graph,
    nodes: dict[fx.Node, fx.Node],
    resize: Resizer,
    affected: Callable[[fx.Node], bool],
) -> None:
    """Check the shapes of a rewritten graph and renew ``node.meta["val"]``.

    Args:
        module: holds the rewritten graph's tensors, on ``meta``.
        graph: the rewritten graph.
        nodes: original node to the one that now stands for its value.
        resize: sizes under the plan.
        affected: whether the plan touches an original node.

    Raises:
        RewriteError: an op does not take the smaller sizes or gives others than predicted.
    """
    originals = {new: old for old, new in nodes.items()}
    fakes: dict[Any, torch.Tensor] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.empty(resize.stand_ins(value), dtype=value.dtype, device="meta")
        if isinstance(value, torch.device):
            return torch.device("meta")
        return resize.sizes.value(value) if isinstance(value, torch.SymInt) else value

    values: dict[fx.Node, Any] = {}
    known: dict[Any, Any] = {}
    for node in graph.nodes:
        old = originals.get(node)
        if node.op == "output":
            continue
        if node.op == "get_attr":
            value = get_attribute(module, str(node.target))
            values[node] = value.to("meta") if isinstance(value, torch.Tensor) else value
        elif old is not None and _sliced_to_symbol(old):
            # The stand-in of a length may be more than there is, such as 10007 of 512 positions.
            shape = [resize.size(layout) for layout in resize.axes(old)]
            values[node] = torch.empty(shape, dtype=old.meta["val"].dtype, device="meta")
        elif node.op == "placeholder" or (old is not None and not affected(old)):
            values[node] = pytree.tree_map(stand_in, node.meta.get("val"))
            continue
        else:
            values[node] = _run(node, values, known)
        if old is None:
            continue
        _check(resize, old, node, values[node])
        node.meta["val"] = _renewed(resize, old, fakes)


def _sliced_to_symbol(node: fx.Node) -> bool:
    return node.target in _SLICES and any(
        isinstance(bound, fx.Node) for bound in (*node.args[1:], *node.kwargs.values())
    )


def _run(node: fx.Node, values: dict[fx.Node, Any], known: dict[Any, Any]) -> Any:
    """What an op gives on ``meta``. Layers repeat ops and shapes, so each is run once."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    assert callable(node.target)
    key = _key(node.target, args, kwargs)
    if key is not None and key in known:
        return _other(known[key])
    try:
        with torch.no_grad():
            result = node.target(*args, **kwargs)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RewriteError(
            f"{node.target} at {location(node) or node.name} does not take the smaller sizes: "
            f"{reason}. If its rule is your own, register a patch for its size arguments"
        ) from error
    if key is not None:
        known[key] = _other(result)
    return result


def _other(value: Any) -> Any:
    """Of the same shape, but not the same: an op may change the shape of its input in place."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def _key(target: Any, args: Any, kwargs: Any) -> Any:
    """What the shapes that an op gives depend on; None where that is not known."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    leaves, structure = pytree.tree_flatten((args, kwargs))
    facts = [
        (tuple(leaf.shape), leaf.stride(), leaf.dtype)
        if isinstance(leaf, torch.Tensor) and leaf.is_meta
        else (type(leaf), leaf)
        for leaf in leaves
    ]
    key = (target, structure, *facts)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _check(resize: Resizer, old: fx.Node, new: fx.Node, value: Any) -> None:
    axes = resize.inferred.axes.get(old)
    if axes is None:
        return
    pairs = zip(value, axes, strict=False) if isinstance(axes, list) else [(value, axes)]
    for result, layouts in pairs:
        expected = tuple(resize.size(layout) for layout in layouts)
        if isinstance(result, torch.Tensor) and tuple(result.shape) != expected:
            raise RewriteError(
                f"{new.target} at {location(new) or new.name} gives shape {tuple(result.shape)} "
                f"where {expected} was expected; please report the model"
            )


def _renewed(resize: Resizer, old: fx.Node, fakes: dict[Any, torch.Tensor]) -> Any:
    """The node's fake value in its new shape. Layers repeat shapes, so they are kept."""
    value, axes = old.meta.get("val"), resize.inferred.axes.get(old)
    if isinstance(value, list | tuple) and isinstance(axes, list):
        pairs = zip(value, axes, strict=False)
        return type(value)(_renewed_tensor(resize, v, a, fakes) for v, a in pairs)
    if isinstance(value, torch.Tensor) and isinstance(axes, tuple):
        return _renewed_tensor(resize, value, axes, fakes)
    return value


def _renewed_tensor(resize: Resizer, value: Any, axes: Any, fakes: dict[Any, torch.Tensor]) -> Any:
    if not isinstance(value, FakeTensor) or not any(resize.changed(layout) for layout in axes):
        return value
    shape: list[Any] = []
    for size, layout in zip(value.shape, axes, strict=True):
        if not resize.changed(layout):
            shape.append(size)
        elif isinstance(size, int):
            shape.append(resize.size(layout))
        else:
            before, after = resize.static_factor(layout)
            shape.append(size // before * after)
    sizes = (size if isinstance(size, int) else size.node.expr for size in shape)
    key = (*sizes, value.dtype, value.device)
    if key not in fakes:
        with value.fake_mode:
            fakes[key] = torch.empty(shape, dtype=value.dtype, device=value.device)
    return fakes[key]
