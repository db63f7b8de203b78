"""Shape propagation through the rewritten graph, checked against the layouts.

Every node that the plan touches is run on ``meta`` tensors in which symbolic sizes have their
stand-in numbers; the shape it gives must be the one its layouts predict.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from fxprune.errors import RewriteError
from fxprune.ops.resize import Axis, Resizer
from fxprune.trace.source import location
from fxprune.trace.storage import mutates

aten = torch.ops.aten
_RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
_SLICES = (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default)


def propagate(
    read: Callable[[str], Any],
    graph: fx.Graph,
    nodes: dict[fx.Node, fx.Node],
    resize: Resizer,
    affected: Callable[[fx.Node], bool],
) -> None:
    """Check the shapes of a rewritten graph and renew ``node.meta["val"]``.

    Args:
        read: gives what the rewritten graph reads by name, tensors on ``meta``.
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

    run = _Run(read, nodes, stand_in)
    for node in graph.nodes:
        old = originals.get(node)
        if node.op == "output":
            continue
        if node.op == "get_attr":
            run.value(node)
        elif old is not None and _not_run(old):
            run.put(node, _predicted(resize, old))
        elif node.op == "placeholder" or (old is not None and not affected(old)):
            continue
        else:
            # A call of a leaf module computes what one op of the original does.
            op = old if node.op == "call_module" and old is not None else node
            run.run(node, op, partial(_instead, resize, old, stand_in) if old else None)
        if old is None:
            continue
        _check(resize, old, node, run.value(node))
        node.meta["val"] = _renewed(resize, old, fakes)


def _not_run(node: fx.Node) -> bool:
    """Whether an op cannot be run with stand-ins for lengths.

    A stand-in may be more than there is, such as 10007 of 512 positions; or more steps of a
    recurrent layer than there is time for.
    """
    if getattr(node.target, "overloadpacket", None) in _RECURRENT:
        return True
    return node.target in _SLICES and any(
        isinstance(bound, fx.Node) for bound in (*node.args[1:], *node.kwargs.values())
    )


def _instead(resize: Resizer, node: fx.Node, stand_in: Callable[[Any], Any]) -> Any:
    """What the layouts say that a node gives, if it cannot be run with stand-ins anyhow.

    Those of sizes that the data decides on do not fit one another, as parts fit their sum; and
    those for height and width make products that no tensor can have.
    """
    if any("val" not in each.meta for each in node.all_input_nodes):
        return None
    given = fx.node.map_arg(
        (node.args, node.kwargs), lambda each: pytree.tree_map(stand_in, each.meta["val"])
    )
    assert callable(node.target)
    try:
        with torch.no_grad():
            node.target(*given[0], **given[1])
    except Exception:  # whatever an op may raise
        return _predicted(resize, node)
    return None


def _predicted(resize: Resizer, node: fx.Node) -> Any:
    """What the layouts say that a node gives, on ``meta``."""

    def empty(axes: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty([resize.size(layout) for layout in axes], dtype=dtype, device="meta")

    value, axes = node.meta["val"], resize.inferred.axes[node]
    if isinstance(value, torch.Tensor):
        return empty(axes, value.dtype)
    return [empty(*each) for each in zip(axes, (v.dtype for v in value), strict=True)]


class _Run:
    """The values of a graph's nodes on ``meta``. Layers repeat ops and shapes: each is run once.

    Args:
        read: gives what the graph reads by name.
        nodes: nodes of another graph that stand for nodes of this one.
        stand_in: gives the value to put for a recorded one.
    """

    def __init__(
        self,
        read: Callable[[str], Any],
        nodes: Mapping[fx.Node, fx.Node],
        stand_in: Callable[[Any], Any],
    ) -> None:
        self._read, self._nodes, self._stand_in = read, nodes, stand_in
        self._values: dict[fx.Node, Any] = {}
        self._facts: dict[fx.Node, Any] = {}
        self._known: dict[Any, tuple[Any, Any]] = {}

    def put(self, node: fx.Node, value: Any) -> None:
        """Say what a node gives."""
        self._values[node], self._facts[node] = value, _facts(value)

    def value(self, node: fx.Node) -> Any:
        """What a node gives: of one that was neither said nor run, a stand-in for its value."""
        node = self._nodes.get(node, node)
        if node not in self._values:
            self.put(node, self._initial(node))
        return self._values[node]

    def _initial(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            return pytree.tree_map(self._stand_in, node.meta.get("val"))
        value = self._read(str(node.target))
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    def run(self, node: fx.Node, op: fx.Node, predict: Callable[[], Any] | None = None) -> None:
        """Call an op for the value of a node.

        Args:
            node: whose value it gives.
            op: the node itself, or the original node that it stands for.
            predict: gives the value, where the op cannot be run with stand-ins; else None.

        Raises:
            RewriteError: it does not take the sizes.
        """
        changes = mutates(op)
        if changes:  # maybe the shape of an input, whose value other nodes may share
            for each in node.all_input_nodes:
                self.put(each, _other(self.value(each)))
        key = None if changes else self._key(op)
        found = self._known.get(key)
        if found is None:
            self.put(node, self._call(op, predict))
            if key is not None:
                self._known[key] = self._values[node], self._facts[node]
        else:
            self._values[node], self._facts[node] = found
        if changes:
            for each in node.all_input_nodes:
                self.put(each, self._values[each])

    def _key(self, node: fx.Node) -> Any:
        """What the shapes that an op gives depend on; None where that is not known."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        # An op is there for good, and its own hash is slow.
        key = (id(node.target), self._signature(node.args), self._signature(node.kwargs))
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def _signature(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            argument = self._nodes.get(argument, argument)
            if argument not in self._facts:
                self.value(argument)
            return self._facts[argument]
        if isinstance(argument, (list, tuple)):
            return tuple([self._signature(each) for each in argument])
        if isinstance(argument, dict):
            return tuple([(name, self._signature(each)) for name, each in argument.items()])
        return type(argument), argument

    def _call(self, node: fx.Node, predict: Callable[[], Any] | None) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        assert callable(node.target)
        try:
            with torch.no_grad():
                return node.target(*args, **kwargs)
        except Exception as error:
            if predict is not None and (value := predict()) is not None:
                return value
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RewriteError(
                f"{node.target} at {location(node) or node.name} does not take the smaller sizes: "
                f"{reason}. If its rule is your own, register a patch for its size arguments"
            ) from error


def _other(value: Any) -> Any:
    """Of the same shape, but not the same."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, value)


def _facts(value: Any) -> Any:
    """What the shapes of results may depend on in a value."""
    if isinstance(value, torch.Tensor) and value.is_meta:
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple([_facts(each) for each in value])
    return type(value), value


def _check(resize: Resizer, old: fx.Node, new: fx.Node, value: Any) -> None:
    axes = resize.inferred.axes.get(old)
    if axes is None:
        return
    pairs = zip(value, axes, strict=False) if isinstance(axes, list) else [(value, axes)]
    read = {user.args[1] if user.target is operator.getitem else None for user in old.users}
    for place, (result, layouts) in enumerate(pairs):
        if isinstance(axes, list) and not read & {place, None}:
            continue  # statistics of a norm, say, of which kernels have their own idea
        expected = tuple(map(resize.size, layouts))
        if isinstance(result, torch.Tensor) and tuple(result.shape) != expected:
            raise RewriteError(
                f"{new.target} at {location(new) or new.name} gives shape {tuple(result.shape)} "
                f"where {expected} was expected; please report the model"
            )


def _renewed(resize: Resizer, old: fx.Node, fakes: dict[Any, torch.Tensor]) -> Any:
    """The node's fake value in its new shape. Layers repeat shapes, so they are kept."""
    value, axes = old.meta.get("val"), resize.inferred.axes.get(old)
    if isinstance(value, (list, tuple)) and isinstance(axes, list):
        pairs = zip(value, axes, strict=False)
        return type(value)(_renewed_tensor(resize, v, a, fakes) for v, a in pairs)
    if isinstance(value, torch.Tensor) and isinstance(axes, tuple):
        return _renewed_tensor(resize, value, axes, fakes)
    return value


def _renewed_tensor(resize: Resizer, value: Any, axes: Any, fakes: dict[Any, torch.Tensor]) -> Any:
    if not isinstance(value, FakeTensor):
        return value
    after = [resize.axis(layout) for layout in axes]
    if not any(axis.changed for axis in after):
        return value
    key = (*[axis.kind for axis in after], value.dtype, value.device)
    if key not in fakes:
        shape = [_size(resize, *each) for each in zip(value.shape, after, strict=True)]
        # In the mode, `empty` would look for its like in a cache first: four times as long.
        bare = torch.empty(shape, dtype=value.dtype, device="meta")
        fakes[key] = FakeTensor(value.fake_mode, bare, value.device)
    return fakes[key]


def _size(resize: Resizer, size: Any, axis: Axis) -> Any:
    if not axis.changed:
        return size
    if isinstance(size, int):
        return axis.size
    before, after = resize.static_factor(axis.layout)
    return size // before * after
