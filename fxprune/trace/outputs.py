"""Outputs compared one by one, each on its own scale and with the tolerance of its own dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

# Largest difference allowed, relative to the largest value of an output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_REAL = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
}
# A slice (a channel, a row, a sequence) is also held against its own scale. What its rounding may
# take from the scale of the whole output: a part of the tolerance.
_SHARED = 0.5
# A slice below this many times what is shared could be off by 1 % within that; of coarse outputs,
# which are allowed more than 1 % anyway, only a slice below a part of the scale is of interest.
_NARROW, _COARSE = 100 * _SHARED, 0.05
_LEAST = 4  # values; one number near zero is not a small scale


@dataclass(frozen=True)
class OutputReport:
    """How one output compares.

    Attributes:
        path: where it is in what the model returns, such as ``logits`` or ``[1]['c4']``.
        dtype: of the numbers that were compared.
        error: largest difference of any element.
        scale: largest absolute value that is finite.
        tolerance: largest ``relative_error`` allowed; 0 for integers.
        used: the largest part of the allowed difference that any slice along any axis uses, each
            held against its own scale; above 1 the outputs differ.
        problem: what is wrong, in words; "" if nothing is.
    """

    path: str
    dtype: torch.dtype | None = None
    error: float = 0.0
    scale: float = 0.0
    tolerance: float = 0.0
    used: float = 0.0
    problem: str = ""

    @property
    def relative_error(self) -> float:
        """``error / scale``."""
        return self.error / self.scale if self.scale else self.error


def paths(spec: pytree.TreeSpec) -> list[str]:
    """Where each output is in what the model returns, in the order in which it is flattened."""
    return [_joined(keys) for keys in _keys(spec)]


def _keys(spec: pytree.TreeSpec) -> list[tuple[int | str, ...]]:
    if spec.is_leaf():
        return [()]
    context = spec.context
    if isinstance(context, list) and len(context) == 2 and isinstance(context[1], list):
        context = context[1]  # of a defaultdict: what makes a value, and the keys
    fields = getattr(spec.context, "_fields", context)  # of a named tuple its class
    children = spec.children()
    known = isinstance(fields, list | tuple) and len(fields) == len(children)
    names: list[Any] = [*(fields or ())] if known else [*range(len(children))]
    return [
        (name, *rest) for name, child in zip(names, children, strict=True) for rest in _keys(child)
    ]


def _joined(keys: tuple[Any, ...]) -> str:
    if keys and isinstance(keys[0], str) and keys[0].isidentifier():
        return keys[0] + "".join(f"[{key!r}]" for key in keys[1:])
    return "".join(f"[{key!r}]" for key in keys) or "output"


def compared(
    path: str,
    expected: Any,
    actual: Any,
    *,
    same_dtype: bool = True,
    slack: torch.Tensor | None = None,
) -> OutputReport:
    """Compare an output with what it should be.

    Floats agree within the tolerance of the coarser dtype, as a whole and slice by slice along
    every axis; NaN and infinities are at the same places. Everything else is equal.

    Args:
        path: of the output, see :func:`paths`.
        expected: what it should be.
        actual: what it is.
        same_dtype: the dtypes must be equal too.
        slack: differences that do not count, broadcast over the output.
    """
    if isinstance(expected, float) and isinstance(actual, float):
        expected, actual = (torch.tensor(x, dtype=torch.float64) for x in (expected, actual))
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        same = type(expected) is type(actual) and bool(expected == actual)
        return OutputReport(path, problem="" if same else f"is {actual!r}, not {expected!r}")
    if actual.shape != expected.shape:
        return OutputReport(
            path, problem=f"has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        )
    rounded = inexact(expected.dtype) and inexact(actual.dtype)
    if actual.dtype != expected.dtype and (same_dtype or not rounded):
        return OutputReport(path, problem=f"is of {actual.dtype}, not of {expected.dtype}")
    actual = actual.detach().to(expected.device)
    return _floats(path, expected, actual, slack) if rounded else _exact(path, expected, actual)


def narrow(value: Any) -> bool:
    """Whether an output has a slice so small beside the rest that rounding would hide an error."""
    if not isinstance(value, torch.Tensor) or not inexact(value.dtype) or not value.numel():
        return False
    sizes = value.detach().abs().nan_to_num(posinf=0.0)
    bound = float(sizes.max()) * min(_NARROW * _tolerance(value.dtype), _COARSE)
    return any(
        bool(((each > 0) & (each < bound)).any())
        for axis in _axes(value)
        for each in (_largest(sizes, axis),)
    )


def _exact(path: str, expected: torch.Tensor, actual: torch.Tensor) -> OutputReport:
    wrong = actual != expected
    error = float((actual.double() - expected.double()).abs().max()) if wrong.any() else 0.0
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    problem = (
        f"differs at {int(wrong.sum())} of {wrong.numel()} places, by up to {error:g}"
        if wrong.any()
        else ""
    )
    used = math.inf if problem else 0.0
    return OutputReport(path, expected.dtype, error, scale, 0.0, used, problem)


def _floats(
    path: str, expected: torch.Tensor, actual: torch.Tensor, slack: torch.Tensor | None
) -> OutputReport:
    dtype = max((expected.dtype, actual.dtype), key=_tolerance)
    tolerance = _tolerance(dtype)
    finite = expected.isfinite()
    if not torch.equal(expected.isnan(), actual.isnan()):
        return OutputReport(path, dtype, problem="is not finite: NaN is not at the same places")
    infinite = ~finite & ~expected.isnan()
    if not torch.equal(finite, actual.isfinite()) or bool(
        (expected[infinite] != actual[infinite]).any()
    ):
        return OutputReport(
            path, dtype, problem="is not finite: infinities are not at the same places"
        )
    # Coarser numbers are subtracted as float32, where what they differ by is exact.
    if dtype.itemsize < 4:
        expected, actual = expected.float(), actual.float()
    sizes = expected.abs().where(finite, 0.0)
    if not sizes.numel():
        return OutputReport(path, dtype, tolerance=tolerance)
    scale = float(sizes.max())
    if torch.equal(expected, actual):
        return OutputReport(path, dtype, 0.0, scale, tolerance)
    difference = (actual - expected).abs().where(finite, 0.0)
    error = float(difference.max())
    if slack is not None:
        difference = (difference - slack).clamp(min=0.0)
    counted = float(difference.max())
    # Zeros have no scale; what numbers near 1 round to is the measure then.
    least = 64 * torch.finfo(dtype).eps
    used = counted / (tolerance * scale) if scale else counted / least
    if scale:
        shared = _SHARED * tolerance * scale
        for axis in _axes(expected):
            allowed = tolerance * _largest(sizes, axis) + shared
            used = max(used, float((_largest(difference, axis) / allowed).max()))
    problem = f"differs by up to {error:.2e} of values up to {scale:.3g}" if used > 1 else ""
    return OutputReport(path, dtype, error, scale, tolerance, used, problem)


def _axes(value: torch.Tensor) -> list[int]:
    return [a for a, size in enumerate(value.shape) if size > 1 and value.numel() // size >= _LEAST]


def _largest(value: torch.Tensor, axis: int) -> torch.Tensor:
    return value.amax([a for a in range(value.dim()) if a != axis]).double()


def inexact(dtype: torch.dtype) -> bool:
    """Whether numbers of a dtype are rounded."""
    return dtype.is_floating_point or dtype.is_complex


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(_REAL.get(dtype, dtype), 5e-2 if dtype.itemsize < 4 else 1e-4)
