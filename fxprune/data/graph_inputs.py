"""Calibration batches as the inputs of a traced graph, and which of their tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxprune.data.calibrate import Batch
from fxprune.errors import CalibrationError
from fxprune.trace.given import beyond
from fxprune.trace.lockstep import flatten, input_names
from fxprune.trace.sizes import is_symbolic
from fxprune.trace.traced import Traced

# A mask that the batch lacks is one of ones like these.
_MASKED = {"attention_mask": "input_ids", "decoder_attention_mask": "decoder_input_ids"}

Masks = dict[int, Tensor]


def graph_inputs(traced: Traced, batch: Batch) -> list[Any]:
    """The values of the graph's placeholders for one batch, from its :func:`named_inputs`.

    Raises:
        CalibrationError: the batch lacks an input, has an unknown one, one of a shape that the
            graph does not take, or token ids beyond the vocabulary; the message names it.
    """
    check_tokens(traced, [batch])
    values = flatten(traced.graph_module, named_inputs(traced, batch))
    _check_shapes(traced, values)
    return values


def named_inputs(traced: Traced, batch: Batch) -> dict[str, Any]:
    """The inputs of the graph for one batch, by name.

    An attention mask that the batch lacks is made of ones; ``labels``, and a mask of ones that the
    graph does not take, are left out; what is not a tensor comes from the traced example.

    Raises:
        CalibrationError: the batch lacks an input, or has an unknown one; the message names it.
    """
    takes = input_names(traced.graph_module)
    given = {name: value for name, value in batch.items() if value is not None}
    for name in [name for name in given if name not in takes]:
        if name != "labels" and not _all_ones(name, given[name]):
            raise CalibrationError(
                f"the graph was traced without the calibration input {name!r}: trace the model "
                f"with it, or leave it out. It takes: {', '.join(takes)}"
            )
        del given[name]
    example = {**dict(zip(takes, traced.args, strict=False)), **traced.kwargs}
    for name in takes:
        if name in given:
            continue
        if _MASKED.get(name) in given:
            given[name] = torch.ones_like(given[_MASKED[name]])
        elif name in example and not isinstance(example[name], Tensor):
            given[name] = example[name]
        else:
            raise CalibrationError(
                f"the calibration data lacks the input {name!r}, with which the model was traced"
            )
    return given


def check_tokens(traced: Traced, data: Sequence[Batch]) -> None:
    """Refuse token ids that the tables of a traced model have no rows for.

    Raises:
        CalibrationError: there are some.
    """
    for batch in data:
        for wrong in beyond(traced.graph_module, (), batch):
            raise CalibrationError(f"the calibration input {wrong}")


def masks(traced: Traced, values: Sequence[Any]) -> Masks:
    """Which rows count, by the number of rows.

    The number of rows of a symbolic shape is in stand-ins, so an encoder's tokens are told from a
    decoder's, and tokens from pixels.

    Returns:
        For each attention mask of shape (N, L) that has a 0: (N * L,), boolean.
    """
    nodes = {node.name: node for node in _placeholders(traced)}
    found: Masks = {}
    for (name, node), value in zip(nodes.items(), values, strict=True):
        if name in _MASKED and value.dim() == 2 and not (rows := value.reshape(-1) != 0).all():
            # The graph may leave it open whether the mask's batch is that of the tokens.
            for each in (node, nodes.get(_MASKED[name], node)):
                found[row_count(traced, each.meta["val"].shape)] = rows
    return found


def only_rows(traced: Traced) -> int | None:
    """How many sequences the graph takes, if it takes no other number; else None."""
    values = [node.meta.get("val") for node in _placeholders(traced)]
    firsts = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    return None if not firsts or any(map(is_symbolic, firsts)) else int(firsts[0])


def row_count(traced: Traced, shape: Sequence[int | torch.SymInt]) -> int:
    """Product of the sizes, a stand-in for each symbolic one."""
    return prod(traced.sizes.value(size) for size in shape)


def _all_ones(name: str, value: Any) -> bool:
    return name in _MASKED and isinstance(value, Tensor) and bool((value != 0).all())


def _placeholders(traced: Traced) -> list[torch.fx.Node]:
    return [node for node in traced.graph_module.graph.nodes if node.op == "placeholder"]


def _check_shapes(traced: Traced, values: Sequence[Any]) -> None:
    for node, value in zip(_placeholders(traced), values, strict=True):
        expected = node.meta.get("val")
        if not isinstance(expected, Tensor) or not isinstance(value, Tensor):
            continue
        fits = expected.dim() == value.dim() and all(
            is_symbolic(size) or int(size) == actual
            for size, actual in zip(expected.shape, value.shape, strict=True)
        )
        if not fits:
            raise CalibrationError(
                f"the calibration input {node.name!r} has shape {tuple(value.shape)}, and the "
                f"graph takes {tuple(map(str, expected.shape))}: trace the model with such an input"
            )
