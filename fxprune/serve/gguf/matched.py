"""A pruned model in the file of its dense one, whose order of values is found by trying.

llama.cpp's converters order rows, transpose matrices and shift norms as each architecture wants it.
Nothing is known of that here: every tensor of the dense file is compared with what the pruned model
keeps of it, and the way that makes them alike is the one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from fxprune.errors import PlanError, ServeError
from fxprune.hf.open import architecture
from fxprune.hf.shrink.fill import named_tensors
from fxprune.rewrite.planned import planned, sliced
from fxprune.serve.decoder import head_dim
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.gguf import file, sizes
from fxprune.serve.gguf.dense import check_same
from fxprune.serve.gguf.file import Blank, Metadata
from fxprune.serve.gguf.written import halves_to_pairs, pairs_to_halves
from fxprune.trace import trace

# A pruned tensor is of the dense one if it differs less, relative to its size: quantised to four
# bits and retrained it is still nearer than that, and in another order it is not.
_NEAR = 0.5
_NUMBER = re.compile(r"(?<=\.)(\d+)(?=[.:])")
_BLOCK = re.compile(r"blk\.(\d+)\.")
# What llama.cpp computes by itself, for the tensors of no module.
_OWN = ("rope_freqs.weight",)

Array = NDArray[Any]


class Way(NamedTuple):
    """How a tensor of the model stands in the file, and back."""

    there: Callable[[Array], Array]
    back: Callable[[Array], Array]


def _ways(head_dim: int) -> tuple[Way, ...]:
    """As it is, shifted as norms are, transposed, and rows of heads in pairs."""
    return (
        Way(lambda x: x, lambda x: x),
        Way(lambda x: x + 1, lambda x: x - 1),
        Way(lambda x: x - 1, lambda x: x + 1),
        Way(lambda x: x.T, lambda x: x.T),
        Way(
            lambda x: halves_to_pairs(x, len(x) // head_dim),
            lambda x: pairs_to_halves(x, len(x) // head_dim) if len(x) % head_dim == 0 else x,
        ),
    )


def matched(pruned: Pruned, reader: gguf.GGUFReader) -> tuple[dict[str, Blank], Metadata]:
    """The tensors of a pruned model as the dense file has them, and the metadata with new sizes.

    Args:
        pruned: the model, with its plan, which prunes all layers alike, or takes whole blocks.
        reader: the dense file.

    Raises:
        ServeError: the file has tensors that the model has not, or the other way round, or none of
            the ways makes them alike.
    """
    plan = pruned.plan
    if plan is None:
        raise ServeError("llama.cpp: without the plan nobody can tell which units are left")
    blank = architecture.build(pruned.config)
    try:
        plan.check_model(blank)
    except PlanError as error:
        raise ServeError(
            f"llama.cpp: the config of {pruned.config.model_type} is that of the pruned model, and "
            "the dense one's is needed: save the graph (save_as='graph') and convert that"
        ) from error
    graph, resize = planned(trace(blank), plan)
    engine("llama.cpp").require(plan, graph)
    entries = file.metadata(reader)
    label = entries["general.architecture"].value
    rope = getattr(pruned.config, "rope_parameters", None) or {}
    plain = rope.get("rope_type", "default") == "default"  # of others converters change the base
    expected = {
        "rope.freq_base": rope.get("rope_theta") if plain else None,
        "attention.layer_norm_rms_epsilon": getattr(pruned.config, "rms_norm_eps", None),
    }
    check_same("the dense file", entries, label, expected)
    count = entries[f"{label}.block_count"].value
    gone = {int(part) for name in plan.removed for part in _NUMBER.findall(name)[:1]}
    kept = [number for number in range(count) if number not in gone]
    names = gguf.get_tensor_name_map(_code(entries), count)
    of_head = head_dim(pruned.config)
    ways = _ways(of_head)
    of_file = {each.name: each for each in reader.tensors}
    held = dict(blank.named_parameters())
    found: dict[str, Blank] = {}
    for name, tensor in _dense_names(named_tensors(pruned.model), kept).items():
        dense = _in_file(names, of_file, name)
        if not dense:
            if name in held and names.get_name(name.rpartition(".")[0]) != "output":
                raise ServeError(f"llama.cpp: the model has {name}, the file has not")
            continue  # a buffer, or a head that is the embedding

        def left(values: Array, name: str = name) -> Array | None:
            found = sliced(graph, resize, name, torch.from_numpy(np.array(values)))
            return None if found is None else found.numpy()

        way = _way(ways, name, tensor, dense, left)
        for each, part in zip(dense, tensor.chunk(len(dense), _parted(tensor)), strict=True):
            found[each.name] = _blank(part, way)
    return _renumbered(reader, found, kept), sizes.of(entries, plan, graph, kept, of_head)


def _in_file(
    names: gguf.TensorNameMap, of_file: Mapping[str, gguf.ReaderTensor], name: str
) -> list[gguf.ReaderTensor]:
    """Where a tensor of the model stands in the file: nowhere, or in one tensor, or in two halves.

    Gates and what they let through are one tensor of experts here, and two there.
    """
    path, _, end = name.rpartition(".")
    inner = names.get_name(path)
    whole = of_file.get(f"{inner}.{end}" if inner else str(names.get_name(name)))
    if whole is None and not inner:
        whole = of_file.get(f"{names.get_name(name)}.weight")
    if whole is not None:
        return [whole]
    halves = (names.get_name(name.replace("gate_up_proj", f"{x}_proj")) for x in ("gate", "up"))
    found = [of_file.get(f"{each}.weight") for each in halves]
    return [each for each in found if each is not None] if None not in found else []


def _parted(tensor: torch.Tensor) -> int:
    """The axis along which halves of a tensor lie."""
    return max(tensor.dim() - 2, 0)


def _renumbered(
    reader: gguf.GGUFReader, found: Mapping[str, Blank], kept: list[int]
) -> dict[str, Blank]:
    """The tensors in the order of the dense file, without those of layers that went.

    Raises:
        ServeError: the file has one that the model has not.
    """
    made = {}
    for each in reader.tensors:
        number = _BLOCK.match(each.name)
        new = each.name
        if number is not None:
            if int(number[1]) not in kept:
                continue
            new = f"blk.{kept.index(int(number[1]))}.{new[number.end() :]}"
        if each.name not in found and each.name not in _OWN:
            raise ServeError(f"llama.cpp: the file has {each.name}, the model has not")
        made[new] = found.get(each.name) or _copied(each)
    return made


def _dense_names(tensors: Mapping[str, torch.Tensor], kept: list[int]) -> dict[str, torch.Tensor]:
    """Tensors by their names in the dense model, whose layers have other numbers."""
    found = ((name, _NUMBER.search(name)) for name in tensors)
    numbers = sorted({int(number[1]) for _, number in found if number})
    if len(numbers) != len(kept):
        raise ServeError(f"llama.cpp: {len(numbers)} layers, and the plan leaves {len(kept)}")
    new = dict(zip(map(str, numbers), map(str, kept), strict=True))
    return {
        _NUMBER.sub(lambda number: new[number[1]], name, count=1): tensor
        for name, tensor in tensors.items()
    }


def _code(entries: Metadata) -> gguf.MODEL_ARCH:
    name = entries["general.architecture"].value
    codes = [code for code, each in gguf.MODEL_ARCH_NAMES.items() if each == name]
    if not codes:
        raise ServeError(f"the package gguf does not know the architecture {name}")
    return codes[0]


def _way(
    ways: tuple[Way, ...],
    name: str,
    tensor: torch.Tensor,
    dense: Sequence[gguf.ReaderTensor],
    left: Callable[[Array], Array | None],
) -> Way:
    """How a tensor stands in the file: the way in which it is nearest to what it was.

    Raises:
        ServeError: it is not near in any.
    """
    parts = [file.values_of(each) for each in dense]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts, _parted(tensor))
    own = tensor.detach().float().cpu().numpy()
    scale, gaps = float(np.linalg.norm(own)) or 1.0, {}
    for way in ways:
        kept = left(way.back(values))
        if kept is not None and kept.shape == own.shape:
            gaps[way] = float(np.linalg.norm(kept - own)) / scale
    best = min(gaps, key=lambda way: gaps[way], default=None)
    if best is None or gaps[best] > _NEAR:
        how = f"shape {values.shape}" if best is None else f"{gaps[best]:.0%} off at best"
        raise ServeError(
            f"llama.cpp: {name} is not {dense[0].name} of the dense file in any known order: {how}"
        )
    return best


def _blank(tensor: torch.Tensor, way: Way) -> Blank:
    shape = tuple(way.there(np.empty(tuple(tensor.shape), np.float32)).shape)
    return Blank(shape, lambda: way.there(tensor.detach().float().cpu().numpy()))


def _copied(each: gguf.ReaderTensor) -> Blank:
    values = file.values_of(each)
    return Blank(tuple(values.shape), lambda: values, Kind.F32)
