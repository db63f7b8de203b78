"""Example inputs: made from a transformers config, checked against the model."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import TraceError
from fxprune.trace.guards import Guards

# Two sequences of eleven tokens: larger than 1, so that torch.export keeps both sizes symbolic.
BATCH, LENGTH = 2, 11


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer (the CPU where there is none)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def from_config(model: nn.Module, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Example inputs for a transformers model, from its config alone.

    Args:
        model: the model.
        device: where they go; by default where the model is.

    Returns:
        ``input_ids`` of shape (2, 11), for encoder-decoders ``decoder_input_ids`` too, or
        ``pixel_values`` of shape (2, channels, height, width).

    Raises:
        TraceError: the model has no transformers config, or reads something else.
    """
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    device = device_of(model) if device is None else device
    if config is not None and main == "input_ids":
        # Different tokens, because the oracle runs on them too; not the first three, which in
        # many models are padding and the like.
        vocabulary = getattr(config.get_text_config(), "vocab_size", None) or LENGTH
        ids = 3 + torch.arange(BATCH * LENGTH, device=device).view(BATCH, LENGTH)
        ids = ids.remainder(vocabulary)
        if getattr(config, "is_encoder_decoder", False):
            return {"input_ids": ids, "decoder_input_ids": ids[:, : LENGTH - 4].clone()}
        return {"input_ids": ids}
    if config is not None and main == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        channels = getattr(config, "num_channels", 3)
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        return {
            "pixel_values": torch.zeros(BATCH, channels, height, width, device=device).to(dtype)
        }
    raise TraceError(
        f"no example inputs can be made for {type(model).__name__}: "
        "pass args=(...) or kwargs={...} with tensors such as the model takes"
    )


def from_placeholders(module: fx.GraphModule) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs of a GraphModule that was exported before, in the shapes recorded in it.

    Raises:
        TraceError: nothing is recorded, as in a module made by ``torch.fx.symbolic_trace``.
    """
    leaves: list[Any] = []
    device = device_of(module)
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            raise TraceError(
                f"input {node.name} of the GraphModule has no recorded example: "
                "pass args=(...) or kwargs={...}"
            )
        shape = [s if isinstance(s, int) else (s.node.hint or LENGTH) for s in value.shape]
        leaves.append(torch.zeros(shape, dtype=value.dtype, device=device))
    info = getattr(module.graph._codegen, "pytree_info", None)
    if info is None:
        return tuple(leaves), {}
    args, kwargs = pytree.tree_unflatten(leaves, info.in_spec)
    return tuple(args), dict(kwargs)


def resized(inputs: Any, guards: Guards, sizes: Mapping[str, int]) -> Any:
    """Nested inputs at other sizes: entries repeat along an axis that grows, the last ones go.

    Args:
        inputs: (args, kwargs) with which a graph was captured.
        guards: its guards.
        sizes: a size for each of their symbols.
    """
    leaves, spec = pytree.tree_flatten(inputs)
    made = []
    for leaf, shape in zip(leaves, guards.shapes(sizes), strict=True):
        if isinstance(leaf, torch.Tensor) and shape is not None:
            for axis, size in enumerate(shape):
                if leaf.shape[axis] != size:
                    places = torch.arange(size, device=leaf.device) % leaf.shape[axis]
                    leaf = leaf.index_select(axis, places)
        made.append(leaf.clone() if isinstance(leaf, torch.Tensor) else leaf)
    return pytree.tree_unflatten(made, spec)


class Example(Protocol):
    """What was captured with inputs."""

    @property
    def guards(self) -> Guards:
        """The inputs that it takes."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional inputs that it was captured with."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword inputs."""


def at_other_size(traced: Example) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The example inputs with another size along every axis that is free.

    Args:
        traced: a traced model, or what else was captured with inputs.

    Returns:
        Positional and keyword inputs; None where no axis is free or no other size is allowed.
    """
    guards = traced.guards
    near = {
        name: [
            n
            for n in (size - 1, size - 2, size + 1, size + 2, *range(3, 2 * size), *_more(size))
            if n >= 1 and n != size
        ]
        for name, size in guards.example.items()
    }
    together = zip(*near.values(), strict=False)
    every = itertools.chain(together, itertools.product(*near.values()))
    for numbers in itertools.islice(every, 5000):
        sizes = dict(zip(near, numbers, strict=True))
        if sizes and guards.allow(sizes):
            made: tuple[tuple[Any, ...], dict[str, Any]]
            made = resized((tuple(traced.args), dict(traced.kwargs)), guards, sizes)
            return made
    return None


def _more(size: int) -> list[int]:
    return [size * factor for factor in (2, 3, 4)]


def tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside nested example inputs, with a name a user recognises."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from tensors(item, f"{name}[{i}]")


def named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every example tensor, positional ones as ``args[i]``."""
    for i, value in enumerate(args):
        yield from tensors(value, f"args[{i}]")
    for key, value in kwargs.items():
        yield from tensors(value, key)


def check(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse inputs the model cannot take before the slow export starts.

    Raises:
        TraceError: wrong names or number of inputs, or a tensor on another device.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise TraceError(
            f"the example inputs do not fit {type(model).__name__}.forward: {error}. "
            f"It takes: {takes}"
        ) from error
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        known = set(signature.parameters)
        # transformers models swallow unknown names in **kwargs; a typo would go unseen.
        unknown = [k for k in kwargs if k not in known]
        if unknown and hasattr(model, "main_input_name"):
            raise TraceError(
                f"{type(model).__name__}.forward has no input named {', '.join(unknown)}. "
                f"It takes: {', '.join(k for k in known if k not in {'args', 'kwargs'})}"
            )
    home = device_of(model)
    for name, tensor in named(args, kwargs):
        if (
            tensor.device != home and home.type != "meta"
        ):  # there, numbers may be known all the same
            raise TraceError(
                f"example input {name} is on {tensor.device} but the model is on {home}: "
                f"move one of them, for example {name}.to({str(home)!r})"
            )
