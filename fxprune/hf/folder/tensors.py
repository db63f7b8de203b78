"""The tensors of a graph in one safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import fx, nn

from fxprune.errors import CheckpointError
from fxprune.hf.folder.shards import write_stream
from fxprune.trace.attributes import get_attribute

Tensors = Callable[[str], torch.Tensor]


def tensors_of(graph_module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every parameter, buffer (persistent or not) and constant, tied ones under all their names."""
    found: dict[str, torch.Tensor] = dict(graph_module.named_parameters(remove_duplicate=False))
    found.update(graph_module.named_buffers(remove_duplicate=False))
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.target not in found:
            value = get_attribute(graph_module, str(node.target))
            if isinstance(value, torch.Tensor):
                found[str(node.target)] = value
    return found


def write(
    graph_module: fx.GraphModule, file: Path, tensors: Tensors | None = None
) -> dict[str, str]:
    """Write all tensors, tied ones once.

    Args:
        graph_module: the graph.
        file: where.
        tensors: gives each, for a graph without weights: they are written one at a time.

    Returns:
        The other names of tied tensors, each with the name it is stored under.
    """
    from safetensors.torch import save_file

    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors_of(graph_module).items():
        storage = tensor.untyped_storage()._cdata
        view = (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if view in first:
            aliases[name] = first[view]
            continue
        first[view] = name
        if tensors is not None:
            stored[name] = tensor
            continue
        plain = tensor.detach().contiguous()
        # A part of a larger storage, or another view of one: the file holds a copy of its own.
        shared = storage in storages or plain.untyped_storage().nbytes() != plain.nbytes
        stored[name] = plain.clone() if shared else plain
        storages.add(storage)
    if tensors is None:
        save_file(stored, file, metadata={"format": "pt"})
    else:
        kinds = {name: (each.dtype, tuple(each.shape)) for name, each in stored.items()}
        write_stream(file, kinds, tensors)
    return aliases


def read(file: Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Read the tensors of a file.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, torch.Tensor] = load_file(file, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error
    return loaded


def assign(graph_module: fx.GraphModule, tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Put tensors into a graph in place of its own; what two names share stays shared.

    Args:
        graph_module: the graph; its own tensors may be on ``meta``.
        tensors: name to new tensor.
        file: where they come from, for messages.

    Raises:
        CheckpointError: names, shapes or dtypes differ.
    """
    own = tensors_of(graph_module)
    if unknown := [name for name in tensors if name not in own]:
        raise CheckpointError(f"{file}: the rebuilt graph has no tensor {unknown[0]!r}")
    # A constant that the trace makes by itself has its value already.
    if missing := [name for name, t in own.items() if t.is_meta and name not in tensors]:
        raise CheckpointError(f"{file} lacks the tensor {missing[0]!r}; save the folder again")
    wrapped: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        there = own[name]
        for what, new, old in (
            ("shape", tuple(tensor.shape), tuple(there.shape)),
            ("dtype", tensor.dtype, there.dtype),
        ):
            if new != old:
                raise CheckpointError(
                    f"{file}: {name!r} has {what} {new} and the rebuilt graph {old}: "
                    "it is of another model"
                )
        if isinstance(there, nn.Parameter):
            if id(tensor) not in wrapped:
                wrapped[id(tensor)] = nn.Parameter(tensor, requires_grad=there.requires_grad)
            tensor = wrapped[id(tensor)]
        path, _, leaf = name.rpartition(".")
        setattr(graph_module.get_submodule(path), leaf, tensor)
