"""Example inputs as users give them, and what is wrong with those that a model cannot take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import TraceError
from fxprune.trace.arguments import argument
from fxprune.trace.lockstep import input_names
from fxprune.trace.refusals import reads_numbers
from fxprune.trace.source import location

aten = torch.ops.aten
_PRODUCTS = {
    aten.linear, aten.matmul, aten.mm, aten.bmm, aten.mv, aten.conv1d, aten.conv2d, aten.conv3d,
    aten.convolution, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
}  # fmt: skip
# Ops that pass token ids on as they are.
_PASSING = {
    aten.to, aten._to_copy, aten.view, aten.reshape, aten.contiguous, aten.clone, aten.alias,
    aten.flatten, aten.unsqueeze, aten.squeeze, aten.slice, aten.detach, aten.expand,
}  # fmt: skip


def examples(
    model: nn.Module, args: Any = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs, from a tuple, a list, one tensor or a mapping.

    Args:
        model: what takes them.
        args: a tuple of positional inputs; or one tensor; or a mapping, which is of keyword inputs
            where its keys are names of inputs, else the one input; or a list, which is one input
            where the model takes a single one, else a tuple.
        kwargs: keyword inputs.

    Raises:
        TraceError: they are none of these.
    """
    named = dict(kwargs or {})
    if isinstance(args, tuple):
        return args, named
    if args is None:
        return (), named
    if isinstance(args, Mapping):
        if all(isinstance(key, str) for key in args) and _binds(model, (), {**args, **named}):
            return (), {**args, **named}
        return (args,), named
    if isinstance(args, torch.Tensor) or _takes_one(model, args):
        return (args,), named
    if isinstance(args, list):
        return tuple(args), named
    raise TraceError(
        f"example inputs cannot be {type(args).__name__}: give args=(tensor, ...), one tensor, or "
        "kwargs={name: tensor}"
    )


def _binds(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _takes_one(model: nn.Module, given: Any) -> bool:
    """Whether a list is the model's one input, such as pictures of several sizes."""
    return isinstance(given, list) and not _binds(model, tuple(given), {})


def vocabularies(module: fx.GraphModule) -> dict[str, tuple[int, str]]:
    """The rows of the table that each input of token ids looks up, and the name of the table.

    Args:
        module: a traced graph.
    """
    found: dict[str, tuple[int, str]] = {}
    for node in module.graph.nodes:
        if node.target is not aten.embedding.default:
            continue
        table, ids = argument(node, "weight"), argument(node, "indices")
        while isinstance(ids, fx.Node) and getattr(ids.target, "overloadpacket", 0) in _PASSING:
            ids = ids.args[0]
        if isinstance(ids, fx.Node) and ids.op == "placeholder" and isinstance(table, fx.Node):
            rows = table.meta["val"].shape[0]
            if isinstance(rows, int) and rows < found.get(ids.name, (rows + 1, ""))[0]:
                found[ids.name] = rows, str(table.target)
    return found


def beyond(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with token ids, in words.

    Args:
        module: a traced graph.
        args: positional inputs.
        kwargs: keyword inputs; some may be missing.
    """
    for name, (rows, table) in vocabularies(module).items():
        ids = named(module, args, kwargs).get(name)
        if not isinstance(ids, torch.Tensor) or ids.is_meta or ids.numel() == 0:
            continue
        if ids.is_floating_point():
            yield f"{name} is {ids.dtype}, and token ids are integers: give {name}.long()"
            continue
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= rows:
            yield (
                f"{name} holds the token {low if low < 0 else high}, and the vocabulary has "
                f"{rows:,} ({table}): is it of another tokenizer?"
            )


def check_values(
    model: nn.Module, module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse example inputs that the traced graph would fail on when it runs on numbers.

    Raises:
        TraceError: token ids are beyond the rows of their table, or a product has factors of
            several dtypes (which tensors without data do not mind).
    """
    for wrong in beyond(module, args, kwargs):
        raise TraceError(f"example input {wrong}")
    for node in module.graph.nodes:
        if getattr(node.target, "overloadpacket", None) not in _PRODUCTS:
            continue
        factors = [n.meta["val"] for n in node.args[:2] if isinstance(n, fx.Node)]
        dtypes = [f.dtype for f in factors if isinstance(f, torch.Tensor)]
        if len(set(dtypes)) > 1:
            place = f" at {where}" if (where := location(node)) else ""
            raise TraceError(
                f"{node.target} multiplies {' by '.join(map(str, dtypes))}{place}"
                + of_other_dtype(model, named(module, args, kwargs))
            )


def named(
    module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Inputs by the names of the placeholders of a traced graph; those of a structure are left out.

    Args:
        module: a traced graph.
        args: positional inputs.
        kwargs: keyword inputs; some may be missing.
    """
    names = input_names(module)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    placeholders = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    if len(names) != len(placeholders):  # export names those of single tensors after the input
        return {name: given[name] for name in placeholders if name in given}
    return {place: given[n] for n, place in zip(names, placeholders, strict=True) if n in given}


def mend(model: nn.Module, values: Mapping[str, Any], error: Exception) -> str:
    """A hint to what in the inputs a model may have failed on ("" if nothing is seen)."""
    if "'indices'" in str(error):
        found = [n for n, t in values.items() if isinstance(t, torch.Tensor)]
        floating = [n for n in found if values[n].is_floating_point()]
        return f"; token ids are integers: give {floating[0]}.long()" if floating else ""
    if reads_numbers(error):
        return (
            "; that line takes numbers out of a tensor. Give an input that it reads as a list of "
            "numbers if the model takes one (by its tolist()), or have the model do without "
            "the line (how-to/remote-code)"
        )
    hint = of_other_dtype(model, values)
    return hint if "dtype" in str(error) or "type" in str(error) else ""


def of_other_dtype(model: nn.Module, values: Mapping[str, Any]) -> str:
    """A hint about inputs in a dtype that the model's weights have not ("" if there are none).

    Args:
        model: the model that could not run.
        values: its inputs by name.
    """
    own = [p.dtype for p in model.parameters() if p.is_floating_point()]
    tensors = {name: t for name, t in values.items() if isinstance(t, torch.Tensor)}
    for name, tensor in tensors.items():
        # Of several inputs, integers may be ids and masks.
        meant = tensor.is_floating_point() or len(tensors) == 1
        if own and meant and tensor.dtype not in own:
            return f"; {name} is {tensor.dtype} and the model {own[0]}: give {name}.to({own[0]})"
    return ""
