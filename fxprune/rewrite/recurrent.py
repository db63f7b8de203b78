"""Recurrent layers and cells come back as ``call_module``: they take states and give several."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.rewrite.shrink import smaller
from fxprune.trace.traced import Traced

aten = torch.ops.aten
_LAYERS = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}
_CELLS = {
    aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default,
    aten.rnn_relu_cell.default,
}  # fmt: skip


def restore(
    traced: Traced,
    calls: Iterable[tuple[str, list[fx.Node]]],
    tensors: Mapping[str, torch.Tensor],
) -> dict[str, nn.Module]:
    """Put calls of smaller modules in place of recurrent ops that read a module's own weights.

    States that are given stay arguments; zeros that the module makes itself are left to it.

    Args:
        traced: the original, whose modules are copied.
        calls: path and nodes of each innermost module call of the rewritten graph, which changes.
        tensors: canonical FQN to the tensor of the new size.

    Returns:
        The smaller modules by the paths that the graph calls.
    """
    built: dict[str, nn.Module] = {}
    for called, nodes in calls:
        path = called.partition("@")[0]
        ops = [node for node in nodes if node.target in _LAYERS | _CELLS]
        if len(ops) != 1:
            continue
        module = traced.module.get_submodule(path)
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        names = {
            n: traced.canonical(f"{path}.{n}")
            for n, p in module._parameters.items()
            if p is not None
        }
        states = _states(ops[0], nodes)
        if states is None or _weights(ops[0]) != list(names.values()):
            continue
        if path not in built:
            small = smaller(module, {n: tensors[fqn] for n, fqn in names.items()}, nodes)
            if small is None:
                continue
            built[path] = small
        _call(ops[0], path, states)
    return built


def _weights(op: fx.Node) -> list[str]:
    given: Any = op.args[2] if op.target in _LAYERS else op.args[2:]
    return [str(w.target) for w in given if isinstance(w, fx.Node) and w.op == "get_attr"]


def _states(op: fx.Node, nodes: list[fx.Node]) -> tuple[Any, ...] | None:
    """The states that are given, () for zeros of the module's own, None where it does more."""
    source, given = op.args[:2]
    states: Any = given if isinstance(given, list | tuple) else [given]
    inside = [state for state in states if state in nodes]
    if source in nodes:
        return None
    if not inside:
        return (tuple(states) if isinstance(given, list | tuple) else given,)
    own = len(inside) == len(states) and all(s.target is aten.zeros.default for s in inside)
    return () if own else None


def _call(op: fx.Node, path: str, states: tuple[Any, ...]) -> None:
    """A layer gives (output, states), the latter a pair for an LSTM; its op gives them in a row."""
    graph = op.graph
    with graph.inserting_before(op):
        call = graph.create_node("call_module", path, (op.args[0], *states))
        call.meta.update(op.meta)
        call.meta.pop("torch_fn", None)
        if op.target is not aten.lstm.input:
            op.replace_all_uses_with(call)
        else:
            output, *pair = op.meta["val"]
            call.meta["val"] = (output, tuple(pair))
            both = graph.call_function(operator.getitem, (call, 1))
            both.meta = {**op.meta, "val": tuple(pair)}
            for user in list(op.users):
                place: Any = user.args[1]
                user.args = (call, 0) if place == 0 else (both, place - 1)
    graph.erase_node(op)
