"""What a capture lost of a model's freedom in sizes, in words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.trace.dynamic import role
from fxprune.trace.guards import Expression, Guards, holds, symbols
from fxprune.trace.inputs import Example
from fxprune.trace.meta import without_values
from fxprune.trace.state import preserved
from fxprune.trace.symbols import Asked

# torch's functions for ops in which an axis meets a weight: it is a feature, fixed by nature. So is
# most of what a graph checks that was captured before.
_WEIGHTED = re.compile(r"mm|linear|conv|norm|embedding|lstm|gru|rnn|bias|_check_shape")


class _Capture(Example, Protocol):
    @property
    def asked(self) -> tuple[Asked, ...]: ...
    @property
    def fixed(self) -> Mapping[tuple[int, int], Asked]: ...
    @property
    def refused(self) -> str: ...


def lost(model: nn.Module, capture: _Capture) -> str:
    """Which sizes the graph refuses though the model takes them, and why ("" for none).

    Sizes that the model itself refuses are no loss, and nor are axes that meet a weight.

    Args:
        model: the model, in evaluation mode.
        capture: how it was captured.
    """
    numbers = [
        f"the model reads the numbers in {name}, so the rewritten graph takes those of the example"
        for name in capture.guards.held
    ]
    if capture.refused and not capture.guards.ranges:
        static = (
            "it can only be captured with static sizes, so the rewritten graph takes inputs of "
            f"the example's shapes only ({capture.refused})"
        )
        return "; ".join((*numbers, static))
    said = dict.fromkeys((*_fixed(model, capture), *_limited(model, capture)))
    sizes = "; ".join(said) + ": the rewritten graph takes only these sizes there"
    return "; ".join((*numbers, sizes) if said else numbers)


def _fixed(model: nn.Module, capture: _Capture) -> Iterator[str]:
    """Axes with one size."""
    guards = capture.guards
    leaves = pytree.tree_leaves((capture.args, capture.kwargs))
    for place, (leaf, guard) in enumerate(zip(leaves, guards.inputs, strict=True)):
        for axis, size in enumerate(guard.shape):
            if not isinstance(size, int) or guard.value is not None:
                continue
            question = capture.fixed.get((place, axis)) or _decided(capture.asked, axis, size)
            if _is_loss(model, capture, place, axis, question):
                why = question.place if question is not None else capture.refused
                yield (
                    f"axis {axis} ({role(leaf, axis)}) of {guard.name} is fixed at {size}"
                    + (f" ({why})" if why else "")
                )


def _decided(asked: tuple[Asked, ...], axis: int, size: int) -> Asked | None:
    """The question that gave an axis its number."""
    return next(
        (
            each
            for each in asked
            if each.axis == axis
            and each.condition is not None
            and holds(each.condition, dict.fromkeys(symbols(each.condition), size))
        ),
        None,
    )


def _is_loss(
    model: nn.Module, capture: _Capture, place: int, axis: int, question: Asked | None
) -> bool:
    leaves = pytree.tree_leaves((capture.args, capture.kwargs))
    if question is None:
        # An axis of one is often broadcast, against a size that is no input's.
        alone = leaves[place].shape[axis] == 1
        taken = not alone or _takes(model, capture, _longer(leaves, place, axis))
        return bool(capture.refused) and taken
    if question.by and not question.by.startswith(("_assert", "_check_with")):
        if axis > 0 and _WEIGHTED.search(question.by):
            return False
        if axis < 2 and role(leaves[place], axis) in ("batch", "sequence"):
            return True
    return _takes(model, capture, _longer(leaves, place, axis))


def _longer(leaves: list[Any], place: int, axis: int) -> list[Any]:
    """The shapes of inputs, with one more along an axis of one of them."""
    shapes: list[Any] = [getattr(leaf, "shape", None) for leaf in leaves]
    shape = shapes[place]
    shapes[place] = (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
    return shapes


def _limited(model: nn.Module, capture: _Capture) -> Iterator[str]:
    """Ranges and conditions that hold for some sizes only."""
    guards = capture.guards
    conditions: list[tuple[Expression, str]] = []
    for name, (low, high) in guards.ranges.items():
        if high is not None:
            conditions.append((("le", name, high), f"{guards.word(name)} is {low} to {high}"))
        elif low > 2:
            conditions.append((("ge", name, low), f"{guards.word(name)} is {low} or more"))
    conditions += [(each, guards.describe(each)) for each in guards.conditions]
    for condition, words in conditions:
        sizes = _violation(guards, condition)
        if sizes is not None and _takes(model, capture, guards.shapes(sizes)):
            question = next((q for q in capture.asked if q.names and q.fails(sizes)), None)
            place = f" ({question.place})" if question is not None and question.place else ""
            yield words + place


def _violation(guards: Guards, condition: Expression) -> dict[str, int] | None:
    """Sizes near the example's, 2 or more, of which the condition alone does not hold."""
    names = sorted(symbols(condition))
    near = [
        dict.fromkeys((*range(guards.example[n] + 1, 3 * guards.example[n] + 40), *range(2, 9)))
        for n in names
    ]
    together = zip(*near, strict=False)
    for numbers in itertools.islice(itertools.chain(together, itertools.product(*near)), 2000):
        sizes = {**guards.example, **dict(zip(names, numbers, strict=True))}
        if not Guards(conditions=(condition,)).allow(sizes):
            return sizes
    return None


def _takes(model: nn.Module, capture: _Capture, shapes: list[Any]) -> bool:
    """Whether the model itself runs on inputs of these shapes; on tensors without values."""
    leaves, spec = pytree.tree_flatten((capture.args, capture.kwargs))
    try:
        with preserved(model), without_values(model):
            made = [
                leaf if shape is None else torch.empty(shape, dtype=leaf.dtype, device=leaf.device)
                for leaf, shape in zip(leaves, shapes, strict=True)
            ]
            args, kwargs = pytree.tree_unflatten(made, spec)
            model(*args, **kwargs)
    except Exception:
        return False
    return True
