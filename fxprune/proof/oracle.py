"""The oracle: the smaller model must compute what the original does with those units zeroed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxprune.data.loader import Source
from fxprune.errors import FxpruneError, OracleError
from fxprune.plan import Plan
from fxprune.proof.examples import Examples, checked
from fxprune.proof.original import Original, OriginalRun
from fxprune.proof.rounding import Rounding
from fxprune.proof.smaller import check_kinds, first_line, reports, same_dtypes
from fxprune.trace.outputs import OutputReport, narrow
from fxprune.trace.traced import Traced

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class VerifyReport:
    """What the oracle measured.

    The first three are of the output that comes nearest to what is allowed.

    Attributes:
        max_abs_error: largest difference of any of its elements.
        scale: its largest absolute value in the original.
        tolerance: largest ``relative_error`` allowed for its dtype.
        normalised: pruned groups whose units are averaged in a norm. There the original was run
            with the norms taken over the kept units.
        outputs: every output at every size that was run.
        trace: whether the traced graph was compared with the model itself, in words.
        precision: what the numbers were computed in, if not in the dtype of the model, in words.
        tensors: how many tensors of the smaller model were compared bit by bit.
    """

    max_abs_error: float
    scale: float
    tolerance: float
    normalised: tuple[str, ...]
    outputs: tuple[OutputReport, ...] = ()
    trace: str = ""
    precision: str = ""
    tensors: int = 0

    @property
    def relative_error(self) -> float:
        """``max_abs_error / scale``."""
        return self.max_abs_error / self.scale if self.scale else self.max_abs_error

    def __str__(self) -> str:
        return (
            f"max |difference| {self.max_abs_error:.2e} of outputs up to {self.scale:.3g} "
            f"({self.relative_error:.1e} relative, {self.tolerance:.0e} allowed)"
        )


@dataclass(frozen=True)
class Reference:
    """What a smaller model is compared with, later.

    Attributes:
        original: the original with the units switched off.
        examples: the inputs.
        runs: of the original at each size, in ``dtype``.
        native: the same in the dtypes of the model, if they were made.
        dtype: precision of ``runs``, if not the model's own.
        precision: the same in words; "" if it is the model's own.
        spreads: how far rounding moves the outputs of a run, by its ``id``, once that was asked.
    """

    original: Original
    examples: Examples
    runs: tuple[OriginalRun, ...]
    native: tuple[OriginalRun, ...]
    dtype: torch.dtype | None
    precision: str
    spreads: dict[int, list[torch.Tensor]] = field(default_factory=dict)


def verify(
    traced: Traced,
    small: nn.Module,
    plan: Plan,
    example: Any = None,
    *,
    stream: Source | None = None,
) -> VerifyReport:
    """Prove that ``small`` is the original without the plan's removed units.

    First the traced graph is compared with the model itself. Then the original runs with those
    units zeroed at every parameter, and each output is compared on its own scale. Where a
    removed unit is averaged in a norm, zeroing is not removal: there the norm is taken over the
    kept units, everything else being the original's full-size computation. Where residual branches
    or blocks went, the original runs with their terms zeroed, or with what left a block overwritten
    by what entered it; that must be what the model without them gives, whose units are then zeroed.

    The tensors of a rewritten graph must be bit by bit the original's at the units that stay. In
    half precision the numbers are computed in float32; in float64 where an output has slices so
    small that float32 would hide an error in them. Where outputs differ by more than the tolerance,
    but by no more than the original's own do when its parameters are moved by one rounding, those
    of float64 decide. Without ``example`` all this is done at another
    size too (of batch, length or picture), if the graph takes one.

    Args:
        traced: the original, with real weights.
        small: the smaller model.
        plan: what was removed.
        example: inputs: keyword arguments as a mapping, positional ones as a tuple, or one tensor.
            The traced example and one of another size if left out.
        stream: where to read the weights of both from, see :func:`fxprune.estimate`: those of one
            op are there at a time, and what leaves each piece is compared as well. The graph is
            not compared with the model itself, nor tensors bit by bit: they are slices as they are
            read.

    Returns:
        The measured error.

    Raises:
        TraceError: the graph does not compute what the model does.
        OracleError: the outputs differ in shape or by more than the tolerance of their dtype, or
            the tensors do; the reference is not finite; or the model has no weights.
    """
    return compare(reference(traced, plan, example, stream=stream), small, traced)


def reference(
    traced: Traced,
    plan: Plan,
    example: Any = None,
    *,
    examples: Examples | None = None,
    stream: Source | None = None,
) -> Reference:
    """Run the original with the removed units switched off.

    Args:
        traced: the original, with real weights.
        plan: what was removed.
        example: see :func:`verify`.
        examples: instead, what :func:`fxprune.proof.examples.checked` gave.
        stream: see :func:`verify`.

    Returns:
        The outputs, in which intermediate values are cut to the size the smaller model gives.

    Raises:
        TraceError: the graph does not compute what the model does.
        OracleError: the outputs are not finite, or the model has no weights.
    """
    if stream is None and any(tensor.is_meta for tensor in traced.tensors.values()):
        raise OracleError("a model on the meta device has no weights to verify with")
    whole = traced.original or traced
    examples = examples or checked(whole, example)
    original = Original(whole, plan, stream)
    half = any(tensor.dtype in _HALF for tensor in whole.tensors.values())
    native = () if half else original.runs(examples, None)
    runs, dtype, precision = native, None, ""
    try:
        if half:
            dtype, precision = torch.float32, "float32: the model is of half precision"
            runs = original.runs(examples, dtype)
        if any(narrow(value) for run in runs for value in run.outputs):
            runs, dtype = original.runs(examples, torch.float64), torch.float64
            precision = "float64: an output has slices too small to be judged in float32"
    except FxpruneError:
        raise
    except Exception as error:
        if not runs:
            runs, dtype = (native := original.runs(examples, None)), None
        precision = f"{dtype or 'the dtype of the model'}: it does not run in a higher precision "
        precision += f"({first_line(error)})"
    return Reference(original, examples, runs, native, dtype, precision)


def compare(expected: Reference, small: nn.Module, traced: Traced) -> VerifyReport:
    """Run the smaller model and compare it with a reference; see :func:`verify`."""
    whole = traced.original or traced
    original = expected.original
    same = same_dtypes(small, whole)
    found: list[OutputReport] = []
    rounding = Rounding(original, expected.spreads)
    weights = original.small(small) if isinstance(small, fx.GraphModule) else None
    if expected.native:
        found += reports(expected.native, small, None, same, rounding, weights)
    else:
        check_kinds(expected.runs[0], small, whole, weights)
    precision = expected.precision
    if expected.dtype is not None and (same or not expected.native):
        try:
            found = list(reports(expected.runs, small, expected.dtype, True, rounding, weights))
        except FxpruneError:
            raise
        except Exception as error:
            if original.consumed:
                raise OracleError(
                    f"the smaller model does not run in {expected.dtype}: {first_line(error)}"
                ) from error
            native = expected.native or original.runs(expected.examples, None)
            found = list(reports(native, small, None, weights=weights))
            precision = (
                "the dtype of the model: the smaller one does not run in a higher precision "
                f"({first_line(error)})"
            )
    if rounding.asked and expected.dtype is not torch.float64:
        try:
            runs = original.runs(expected.examples, torch.float64)
            found = list(reports(runs, small, torch.float64, weights=weights))
        except FxpruneError:
            raise
        except Exception as error:
            raise OracleError(
                "on these inputs the original amplifies rounding, and in float64 it does not run: "
                f"{first_line(error)}. Give others: fxprune.verify(traced, small, plan, inputs)"
            ) from error
        precision = "float64: on these inputs the original amplifies rounding"
    tensors = original.check(small) if isinstance(small, fx.GraphModule) else 0
    for run in expected.runs:
        found.extend(run.bypassed)
    worst = max(found, key=lambda report: report.used, default=OutputReport(""))
    return VerifyReport(
        worst.error,
        worst.scale,
        worst.tolerance,
        original.normalised,
        tuple(found),
        expected.examples.trace,
        precision,
        tensors,
    )
