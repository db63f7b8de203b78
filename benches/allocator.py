"""Memory of the weights on a GPU, by the rules of CUDA's caching allocator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import torch

from fxprune.axes.dims import Dim
from fxprune.axes.positions import kept_size
from fxprune.costs.attention import activations
from fxprune.errors import CostError
from fxprune.groups.parameters import remaining_shapes

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph

_MIB = 1 << 20
# c10/cuda/CUDACachingAllocator: kMinBlockSize, kMinLargeAlloc, kRoundLarge, kSmallSize.
_BLOCK, _LARGE, _SEGMENT, _SPLIT = 512, 10 * _MIB, 2 * _MIB, _MIB


def memory_estimate(
    graph: DependencyGraph,
    counts: Mapping[Dim, int] | None = None,
    dtype: torch.dtype = torch.float16,
    context: int | None = 2048,
) -> int:
    """Bytes that ``torch.cuda.memory_allocated`` shows once the weights are on a GPU.

    An estimate: parameters and persistent buffers, each in a block of its own, loaded into an empty
    heap. Activations, the key/value cache and cuBLAS workspaces are not in it.

    Args:
        graph: the groups of the model; its tensors may be on ``meta``.
        counts: units that stay, by dim; a dim that is absent keeps all.
        dtype: of every floating-point tensor.
        context: positions for which every layer with a rotary embedding holds cosines and sines of
            its own, as transformers' models did when LLM-Pruner's "Memory" (arXiv 2305.11627,
            table 3) was measured. None: no such tables, as today.

    Raises:
        CostError: context is negative.
    """
    if context is not None and context < 0:
        raise CostError(f"context={context}: a number of positions is not negative")
    counts = counts or {}
    total = sum(allocated(numbers) for numbers in _tensors(graph, counts, dtype.itemsize))
    if context is None:
        return total
    for width in _rotary_widths(graph, counts):
        total += 2 * allocated(context * width * dtype.itemsize)
        total += allocated(-(-width // 2) * dtype.itemsize)
    return total


def allocated(size: int) -> int:
    """Bytes of the block that a tensor of ``size`` bytes gets.

    Blocks are multiples of 512 bytes. From 10 MiB on a tensor gets a segment of its own, a multiple
    of 2 MiB, whose rest goes to others only if it is more than 1 MiB.
    """
    block = _rounded(size, _BLOCK)
    if block < _LARGE:
        return block
    segment = _rounded(block, _SEGMENT)
    return block if segment - block > _SPLIT else segment


def _tensors(graph: DependencyGraph, counts: Mapping[Dim, int], width: int) -> Iterator[int]:
    """Bytes of every parameter and persistent buffer, a tied one once."""
    module, aliases = graph.traced.module, graph.traced.aliases
    shapes = remaining_shapes(graph)
    stored = {aliases.get(n, n): t for n, t in module.state_dict(keep_vars=True).items()}
    for name, tensor in stored.items():
        if isinstance(tensor, torch.Tensor) and name not in (*shapes, *graph.traced.dropped):
            shapes[name] = tuple(tensor.shape)
    for name, shape in shapes.items():
        layouts = graph.layouts.get(name)
        if layouts is not None:
            shape = tuple(kept_size(layout, counts) for layout in layouts)
        tensor = stored.get(name)
        whole = isinstance(tensor, torch.Tensor) and not tensor.is_floating_point()
        yield prod(shape) * (tensor.itemsize if tensor is not None and whole else width)


def _rotary_widths(graph: DependencyGraph, counts: Mapping[Dim, int]) -> Iterator[int]:
    """The last axis of the rotary angles of every attention that has them."""
    found = activations(graph)
    for attention in found.attentions:
        turned = found.rotations(attention.query)
        if turned:
            layouts = graph.inferred.axes[turned[0]]
            assert isinstance(layouts, tuple)
            yield kept_size(layouts[-1], counts)


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to
