"""Ops without a rule of their own, taken apart the way torch itself defines them.

Only such an op is replaced, by the ops that it is made of, and those in turn where they have no
rule either. The graph stays the one that every later stage runs and rewrites.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental import _config, symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import fxprune.ops  # noqa: F401  (they register themselves)
from fxprune.ops.op import find_op
from fxprune.trace.storage import mutates
from fxprune.trace.traced import Traced

# What a node says of the line and module it comes from.
_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack")


def decompose(traced: Traced) -> None:
    """Replace every op that no rule knows by what torch makes it of, in place and once.

    An op stays whole, and freezes what it touches, if torch does not say what it is made of, if one
    of its parts is not known either, if the parts hold at the example's sizes only, or if they
    write, view or copy otherwise than the op does.

    Args:
        traced: the traced model; its graph computes the same afterwards.
    """
    if traced.cache.get("decomposed"):
        return
    traced.cache["decomposed"] = True
    graph_module = traced.graph_module
    replaced = [_replace(node) for node in graph_module.graph.nodes if _unknown(node)]
    if any(replaced):
        graph_module.graph.lint()
        graph_module.recompile()


def _unknown(node: fx.Node) -> bool:
    """Whether an op on numbers that pruning could reach has no rule."""
    if not isinstance(node.target, torch._ops.OpOverload) or find_op(node.target).rule is not None:
        return False
    results, operands = (
        [v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
        for values in (node.meta.get("val"), [n.meta.get("val") for n in node.all_input_nodes])
    )
    numbers = (v.is_floating_point() or v.is_complex() for v in (*results, *operands))
    return bool(results) and any(numbers)


def _replace(node: fx.Node) -> bool:
    """Put an op's parts in its place, if it has any that are all known."""
    made = _parts(node)
    if made is None or not all(_replace(each) for each in made.nodes if _unknown(each)):
        return False
    placeholders = [each for each in made.nodes if each.op == "placeholder"]
    known: dict[fx.Node, Any] = dict(zip(placeholders, node.all_input_nodes, strict=True))
    home = next((n for n in node.graph.nodes if n.target is getattr), None)  # the inputs' device
    with node.graph.inserting_before(node):
        for each in made.nodes:
            if each.op != "call_function":
                continue
            args, kwargs = fx.node.map_arg((each.args, each.kwargs), known.__getitem__)
            if home is not None and kwargs.get("device") == home.meta["val"]:
                kwargs = {**kwargs, "device": home}
            known[each] = new = node.graph.call_function(each.target, args, kwargs)
            new.meta = {key: node.meta[key] for key in _ORIGIN if key in node.meta}
            new.meta["val"] = each.meta.get("val")
    outputs = [known.get(each, each) for each in _results(made)]
    if isinstance(node.meta["val"], torch.Tensor):
        node.replace_all_uses_with(outputs[0])
    else:
        for user in list(node.users):
            place: Any = user.args[1]
            user.replace_all_uses_with(outputs[place])
            node.graph.erase_node(user)
    node.graph.erase_node(node)
    return True


def _parts(node: fx.Node) -> fx.Graph | None:
    """The graph of what an op is made of, with one placeholder for each input node."""
    op: Any = node.target
    definition = _definition(op)
    inputs = [n.meta.get("val") for n in node.all_input_nodes]
    values = [*inputs, *pytree.tree_leaves(node.meta.get("val"))]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)
    single = isinstance(node.meta.get("val"), torch.Tensor)
    if definition is None or mode is None or any(isinstance(v, list | tuple) for v in inputs):
        return None
    if not single and any(user.target is not operator.getitem for user in node.users):
        return None

    def call(*given: Any) -> Any:
        held = dict(zip(node.all_input_nodes, given, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), held.__getitem__)
        # A torch function mode of the tracer would record the op itself.
        with torch._C.DisableTorchFunction():
            return definition(*args, **kwargs)

    try:
        with torch.no_grad(), mode, _no_guards(mode.shape_env):
            made = make_fx(call, pre_dispatch=True)(*inputs).graph
    except Exception:  # definitions fail in as many ways as there are ops
        return None
    made.eliminate_dead_code(lambda n: bool(n.users) or n.is_impure() or mutates(n))
    return made if _faithful(node, made) else None


@contextlib.contextmanager
def _no_guards(shapes: Any) -> Iterator[None]:
    """Fail, without a word in the log, where the parts would hold at some sizes only."""
    logger = logging.getLogger(symbolic_shapes.__name__)
    before = logger.disabled
    logger.disabled = True
    try:
        with (
            _config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            shapes.error_on_new_guards() if shapes is not None else contextlib.nullcontext(),
        ):
            yield
    finally:
        logger.disabled = before


@functools.cache
def _table() -> Mapping[Any, Callable[..., Any]]:
    return torch.export.default_decompositions()


def _definition(op: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """What the op is made of: its own composite kernel, else torch's table."""
    if op._can_decompose():
        return op.decompose
    table = _table()  # whose `get` knows nothing
    return table[op] if op in table else None  # noqa: SIM401


def _results(made: fx.Graph) -> list[Any]:
    return pytree.tree_leaves(made.output_node().args[0])


def _faithful(node: fx.Node, made: fx.Graph) -> bool:
    """Whether the parts give what the op gives and write, view and copy as it does."""
    op: Any = node.target
    if any(n.op == "get_attr" or n.target is op for n in made.nodes):
        return False
    values = [r.meta.get("val") if isinstance(r, fx.Node) else r for r in _results(made)]
    before = pytree.tree_leaves(node.meta["val"])
    if list(map(_facts, values)) != list(map(_facts, before)):
        return False
    composite = op._can_decompose()  # then eager mode runs the same
    if op._schema.is_mutable:
        inputs = {n for n in made.nodes if n.op == "placeholder"}
        return composite and any(mutates(n) and n.args[0] in inputs for n in made.nodes)
    views = any(value.alias_info is not None for value in op._schema.returns)
    return composite or not (views or any(map(_of_input, _results(made))))


def _facts(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return type(value)
    # Sizes are compared as expressions: to compare the numbers would be a guard.
    shape = [s if isinstance(s, int) else s.node.expr for s in value.shape]
    return shape, value.dtype


def _of_input(result: Any) -> bool:
    """Whether a result may be, or be a view of, what enters."""
    while isinstance(result, fx.Node) and result.op != "placeholder":
        schema = getattr(result.target, "_schema", None)
        if schema is None or all(value.alias_info is None for value in schema.returns):
            return False
        result = result.args[0]
    return True
