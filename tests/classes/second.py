"""A second opinion on a smaller graph, by an oracle that shares nothing with the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.classes.attempt import Mismatch, NothingThere, message
from tests.classes.build import plainly
from tests.fuzz.alive import UnknownOpError
from tests.fuzz.check import _fragile
from tests.fuzz.reference import (
    NotASliceError,
    difference,
    expected,
    flat,
    kept_positions,
    named_tensors,
)

TOLERANCE = 1e-4


def by_value(
    model: Any, small: Any, blocks: tuple[str, ...], inputs: Mapping[str, torch.Tensor]
) -> str:
    """Compare a smaller graph with the model without what it has lost, found by value.

    Args:
        model: the original.
        small: the smaller graph.
        blocks: modules that pass on what enters them, in the original.
        inputs: to compare on.

    Raises:
        Mismatch: the numbers differ by more than rounding, or a tensor is no slice of the model's.
        NothingThere: the oracle has no rule for a function of the model, or knows no such block.
    """
    given = plainly(model, inputs)

    def reference(given: Any) -> list[torch.Tensor]:
        return expected(model, (), given[1], kept, skipped=blocks)

    try:
        _check_values(model, small)
        kept = kept_positions(small, model)
        want = reference(((), given))
        with torch.no_grad():
            got = flat(small(**inputs))
    except UnknownOpError as error:
        raise NothingThere(f"no rule of the second oracle for {error}") from error
    except NotASliceError as error:
        raise Mismatch(str(error)) from error
    except Exception as error:
        if not blocks:
            raise
        why = f"the second oracle cannot pass by {blocks[0]}: {message(error)}"
        raise NothingThere(why) from error
    error = difference(want, got)
    if error <= TOLERANCE:
        return f"{error:.1e}"
    if _fragile(reference, ((), given), want, error):
        return f"{error:.1e}, as far as rounding moves the model itself"
    raise Mismatch(f"{error:.1e} by the second oracle")


def _check_values(model: Any, small: Any) -> None:
    """Entries must be told by their values, and so be unlike one another.

    Raises:
        NothingThere: those of a tensor that lost some are not, as frequencies that are all zero.
    """
    old = named_tensors(model)
    for name, tensor in named_tensors(small).items():
        if name not in old or tensor.shape == old[name].shape:
            continue
        for axis, (less, size) in enumerate(zip(tensor.shape, old[name].shape, strict=False)):
            rows = old[name].detach().movedim(axis, 0).reshape(size, -1)
            if less != size and len(rows.unique(dim=0)) < size:
                raise NothingThere(f"the second oracle cannot tell entries of {name} by value")
