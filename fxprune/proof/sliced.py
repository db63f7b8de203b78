"""Tensors of a smaller graph, bit by bit against those of the original."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection

import torch
from torch import fx

from fxprune.errors import OracleError
from fxprune.groups.dependency import DependencyGraph
from fxprune.ops.resize import Resizer

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CALL = re.compile(r"@\d+")


@torch.no_grad()
def check_sliced(
    graph: DependencyGraph, resize: Resizer, small: fx.GraphModule, biases: Collection[str]
) -> int:
    """Check that every tensor of a rewritten graph is the original's at the units that stay.

    Compared are the bits, so that this holds in any dtype. Tensors that the original has not by
    that name, such as constants made while rewriting, are left to the numbers.

    Args:
        graph: the groups of the original, without the branches and blocks that were removed.
        resize: what becomes of its axes.
        small: the rewritten graph.
        biases: names of the biases that the plan adds.

    Returns:
        How many tensors were compared.

    Raises:
        OracleError: one has other bits; the message names it.
    """
    traced = graph.traced
    seen: set[int] = set()
    count = 0
    for name, tensor in itertools.chain(
        small.named_parameters(remove_duplicate=False), small.named_buffers(remove_duplicate=False)
    ):
        # The second call of a shared module stands under "path@1".
        canonical = traced.canonical(_CALL.sub("", name))
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if canonical in biases:
            if tensor.count_nonzero():
                raise OracleError(_wrong(name, "is a bias that the plan adds, and not zero"))
            continue
        original = traced.tensors.get(canonical)
        if original is None or original.dtype != tensor.dtype:
            continue
        layouts = graph.layouts[canonical]
        expected = resize.slice(original, layouts)
        count += 1
        if expected is tensor:
            continue
        if tensor.shape != expected.shape:
            shapes = f"has shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
            raise OracleError(_wrong(name, shapes))
        differing = _differing(expected.to(tensor.device), tensor)
        if differing:
            raise OracleError(
                _wrong(
                    name,
                    "is not what the original has at the units that stay: "
                    f"{differing} of {tensor.numel()} values differ",
                )
            )
    return count


def _differing(expected: torch.Tensor, actual: torch.Tensor) -> int:
    if expected.data_ptr() == actual.data_ptr() and expected.stride() == actual.stride():
        return 0
    mine, theirs = _bits(actual), _bits(expected)
    return 0 if torch.equal(mine, theirs) else int((mine != theirs).sum())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().view(_BITS[tensor.element_size()])


def _wrong(name: str, what: str) -> str:
    return (
        f"{name} of the smaller model {what}. It must not be used; please report the model "
        "(if it was compensated or trained: verify it before that)"
    )
