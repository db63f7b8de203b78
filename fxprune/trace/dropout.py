"""Dropout that is written as a function, found by a run in training mode.

A graph traced in evaluation mode cannot say what a call of ``F.dropout`` or of attention does in
training: its probability may be a constant there, 0, or 0 only in evaluation mode. So the model
runs once in training mode on fake tensors, which computes nothing, and the calls that come by are
matched with the nodes of the graph.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.trace.arguments import argument
from fxprune.trace.meta import without_values
from fxprune.trace.source import module_path
from fxprune.trace.state import preserved

aten = torch.ops.aten

# On a node: the probability with which it drops in training mode.
META = "dropout"

DROPOUTS = {
    aten.dropout.default, aten.dropout_.default,
    aten.alpha_dropout.default, aten.alpha_dropout_.default,
    aten.feature_dropout.default, aten.feature_dropout_.default,
    aten.feature_alpha_dropout.default, aten.feature_alpha_dropout_.default,
}  # fmt: skip
ATTENTION = aten.scaled_dot_product_attention.default

# Calls of a function by the path of the innermost module, in order.
Calls = dict[str, list[float]]


def silent(node: fx.Node) -> bool:
    """Whether a node of dropout passes its input on as it is, in the mode of the trace."""
    return not argument(node, "train") or argument(node, "p") == 0


def mark(
    graph_module: fx.GraphModule, model: nn.Module, args: Any, kwargs: Mapping[str, Any]
) -> str:
    """Note on the nodes that would drop in training mode with which probability.

    Args:
        graph_module: an exported graph, traced in evaluation mode.
        model: what it was exported from; left as it was found.
        args: positional inputs of its size; no values of them are read.
        kwargs: keyword inputs.

    Returns:
        What of it the graph has no node for, in words; "" if it has all.
    """
    nodes = list(_nodes(graph_module))
    dropouts = [n for n in nodes if n.target in DROPOUTS and silent(n)]
    attention = [n for n in nodes if n.target is ATTENTION and argument(n, "dropout_p") == 0]
    functional = [n for n in dropouts if not of_module(n)]
    seen = any(argument(n, "p") > 0 for n in functional)
    if not seen and not ((functional or attention) and _could_drop(model)):
        return ""
    recorder = _Recorder(model)
    try:
        with preserved(model), without_values(model) as mode, recorder.watching():
            given = pytree.tree_map_only(
                torch.Tensor,
                lambda t: t if mode.is_our_fake(t) else mode.from_tensor(t),
                (args, dict(kwargs)),
            )
            _train(model)
            model(*given[0], **given[1])
    except Exception as error:
        # Called as a function, dropout works as it is mostly written.
        for node in functional:
            if (p := argument(node, "p")) > 0:
                node.meta[META] = p
        if not (attention and _could_drop(model)):
            return ""
        why = next(iter(str(error).splitlines()), type(error).__name__)
        return (
            "the model cannot be run in training mode on tensors without data, so attention in "
            f"the rewritten graph trains without dropout ({why})"
        )
    missing = [
        *_match(dropouts, recorder.calls["dropout"]),
        *_match(attention, recorder.calls["attention"]),
    ]
    if not missing:
        return ""
    return (
        f"in training mode {', '.join(path or 'the model' for path in missing)} calls dropout "
        "that evaluation mode leaves out, so the rewritten graph trains without it there"
    )


def of_module(node: fx.Node) -> bool:
    """Whether a node is what one of torch's own modules left, which comes back by itself."""
    stack = node.meta.get("nn_module_stack") or {"": ("", "")}
    kind = list(stack.values())[-1][1]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return name.startswith(f"{nn.Dropout.__module__}.")


def _nodes(graph_module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes in the order in which they run, those of regions too."""
    for node in graph_module.graph.nodes:
        for source in node.all_input_nodes if node.op == "call_function" else ():
            body = getattr(graph_module, str(source.target), None) if source.op == "get_attr" else 0
            if isinstance(body, fx.GraphModule):
                yield from _nodes(body)
        yield node


def _could_drop(model: nn.Module) -> bool:
    """Whether any number by the name of dropout is not 0, in a module or a config.

    Without a config, the number may stand in code alone.
    """
    if not hasattr(model, "config"):
        return True
    for module in model.modules():
        named = "drop" in type(module).__name__.lower()
        for holder in (module, getattr(module, "config", None)):
            for name, value in getattr(holder, "__dict__", {}).items():
                says = "drop" in name.lower() or (named and name == "p")
                if says and isinstance(value, float) and value > 0:
                    return True
    return False


def _train(model: nn.Module) -> None:
    try:
        model.train()
    except NotImplementedError:  # a module that torch.export made
        for module in model.modules():
            module.training = True


def _match(nodes: list[fx.Node], calls: Calls) -> list[str]:
    """Mark nodes with the probabilities of their calls; return the paths where they differ."""
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes:
        found[module_path(node).partition("@")[0]].append(node)
    missing = []
    whole = [p for each in calls.values() for p in each]
    if set(found) != set(calls) and len(nodes) == len(whole):
        # A graph that was rewritten before names other modules than those that run.
        found, calls = {"": nodes}, {"": whole}
    for path, drawn in calls.items():
        if len(found[path]) != len(drawn):
            missing += [path] if any(drawn) else []
            continue
        for node, p in zip(found[path], drawn, strict=True):
            if p > 0:
                node.meta[META] = p
    return missing


class _Recorder(TorchFunctionMode):
    """Writes down the probability of every dropout, 0 for one that is off, and of attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, Calls] = {"dropout": {}, "attention": {}}
        self._names = {module: name for name, module in model.named_modules()}
        self._stack = [""]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record what runs inside the block."""
        entered = register_module_forward_pre_hook(self._enter)
        left = register_module_forward_hook(self._leave, always_call=True)
        cond, torch.cond = torch.cond, _both  # which compiles what it calls, past every mode
        try:
            with self:
                yield
        finally:
            torch.cond = cond
            entered.remove()
            left.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(self._names.get(module, self._stack[-1]))

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", func)
        name = getattr(packet, "__name__", "")
        if "dropout" in name:
            self._note("dropout", _dropout(func, args, kwargs))
        elif name == "scaled_dot_product_attention":
            self._note("attention", _given(args, kwargs, 4, "dropout_p", 0.0))
        elif name == "multi_head_attention_forward":
            given = inspect.signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            p = given.arguments["dropout_p"] if given.arguments["training"] else 0.0
            if not given.arguments["need_weights"]:
                self._note("attention", p)
            elif p > 0:  # a call of dropout that evaluation mode leaves out
                self._note("dropout", p)
        elif name == "__bool__":
            # Whether to skip a layer this time, mostly.
            with contextlib.suppress(RuntimeError):
                return func(*args, **kwargs)
            return False
        return func(*args, **kwargs)

    def _note(self, kind: str, p: float) -> None:
        self.calls[kind].setdefault(self._stack[-1], []).append(float(p))


def _dropout(func: Any, args: Any, kwargs: Mapping[str, Any]) -> float:
    """The probability of a call of dropout: of torch.nn.functional, of torch or of aten."""
    if inspect.isfunction(func):
        given = inspect.signature(func).bind(*args, **kwargs)
        given.apply_defaults()
        return float(given.arguments["p"]) if given.arguments["training"] else 0.0
    p, train = _given(args, kwargs, 1, "p", 0.0), _given(args, kwargs, 2, "train", False)
    return float(p) if train else 0.0


def _given(args: Any, kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _both(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
    """Both branches of ``torch.cond``, in the order in which a graph holds them."""
    true_fn(*operands)
    return false_fn(*operands)
