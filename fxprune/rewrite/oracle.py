"""The oracle: the smaller model must compute what the original does with those units zeroed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError, OracleError
from fxprune.plan import Plan
from fxprune.rewrite.examples import Examples, checked, named
from fxprune.rewrite.original import Original, OriginalRun
from fxprune.rewrite.outputs import OutputReport, compared, narrow
from fxprune.rewrite.runs import Run, call
from fxprune.trace.lockstep import flatten
from fxprune.trace.modes import as_captured
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
    """

    original: Original
    examples: Examples
    runs: tuple[OriginalRun, ...]
    native: tuple[OriginalRun, ...]
    dtype: torch.dtype | None
    precision: str


def verify(traced: Traced, small: nn.Module, plan: Plan, example: Any = None) -> VerifyReport:
    """Prove that ``small`` is the original without the plan's removed units.

    First the traced graph is compared with the model itself. Then the original runs with those
    units zeroed at every parameter, and each output is compared on its own scale. Where a
    removed unit is averaged in a norm, zeroing is not removal: there the norm is taken over the
    kept units, everything else being the original's full-size computation. Where residual branches
    or blocks went, the original runs with their terms zeroed, or with what left a block overwritten
    by what entered it; that must be what the model without them gives, whose units are then zeroed.

    The tensors of a rewritten graph must be bit by bit the original's at the units that stay. In
    half precision the numbers are computed in float32; in float64 where an output has slices so
    small that float32 would hide an error in them. Without ``example`` all this is done at another
    size too (of batch, length or picture), if the graph takes one.

    Args:
        traced: the original, with real weights.
        small: the smaller model.
        plan: what was removed.
        example: inputs: keyword arguments as a mapping, positional ones as a tuple, or one tensor.
            The traced example and one of another size if left out.

    Returns:
        The measured error.

    Raises:
        TraceError: the graph does not compute what the model does.
        OracleError: the outputs differ in shape or by more than the tolerance of their dtype, or
            the tensors do; the reference is not finite; or the model has no weights.
    """
    return compare(reference(traced, plan, example), small, traced)


def reference(
    traced: Traced, plan: Plan, example: Any = None, *, examples: Examples | None = None
) -> Reference:
    """Run the original with the removed units switched off.

    Args:
        traced: the original, with real weights.
        plan: what was removed.
        example: see :func:`verify`.
        examples: instead, what :func:`fxprune.rewrite.examples.checked` gave.

    Returns:
        The outputs, in which intermediate values are cut to the size the smaller model gives.

    Raises:
        TraceError: the graph does not compute what the model does.
        OracleError: the outputs are not finite, or the model has no weights.
    """
    if any(tensor.is_meta for tensor in traced.tensors.values()):
        raise OracleError("a model on the meta device has no weights to verify with")
    whole = traced.original or traced
    examples = examples or checked(whole, example)
    original = Original(whole, plan)
    native: tuple[OriginalRun, ...] = ()
    if any(tensor.dtype in _HALF for tensor in whole.tensors.values()):
        dtype, why = torch.float32, "the model is of half precision"
    else:
        native = original.runs(examples, None)
        if not any(narrow(value) for run in native for value in run.outputs):
            return Reference(original, examples, native, native, None, "")
        dtype, why = torch.float64, "an output has slices too small to be judged in float32"
    name = str(dtype).removeprefix("torch.")
    try:
        runs = original.runs(examples, dtype)
    except FxpruneError:
        raise
    except Exception as error:
        native = native or original.runs(examples, None)
        precision = f"the model's own: it does not run in {name} ({first_line(error)})"
        return Reference(original, examples, native, native, None, precision)
    precision = f"{name}: {why}"
    return Reference(original, examples, runs, native, dtype, precision)


def compare(expected: Reference, small: nn.Module, traced: Traced) -> VerifyReport:
    """Run the smaller model and compare it with a reference; see :func:`verify`."""
    whole = traced.original or traced
    original = expected.original
    reports = list(_native(expected, small, whole))
    precision = expected.precision
    if expected.dtype is not None:
        try:
            reports = list(_reports(expected.runs, small, expected.dtype))
        except FxpruneError:
            raise
        except Exception as error:
            if original.consumed:
                raise OracleError(
                    f"the smaller model does not run in {expected.dtype}: {first_line(error)}"
                ) from error
            native = expected.native or original.runs(expected.examples, None)
            reports = list(_reports(native, small, None))
            precision = f"the model's own: the smaller one does not run in {expected.dtype}"
    tensors = original.check(small) if isinstance(small, fx.GraphModule) else 0
    for run in expected.runs:
        reports.extend(run.bypassed)
    worst = max(reports, key=lambda report: report.used, default=OutputReport(""))
    return VerifyReport(
        worst.error,
        worst.scale,
        worst.tolerance,
        original.normalised,
        tuple(reports),
        expected.examples.trace,
        precision,
        tensors,
    )


def _native(expected: Reference, small: nn.Module, whole: Traced) -> Iterator[OutputReport]:
    """The smaller model as its users will run it.

    In half precision only shapes and dtypes are compared, for its numbers say little.
    """
    if expected.native:
        yield from _reports(expected.native, small, None, _same_dtypes(small, whole))
        return
    nodes = pytree.tree_leaves(whole.graph_module.graph.output_node().args[0])
    for run in expected.runs[:1]:
        found = _run(small, run, None)
        for name, value, theirs, node in zip(run.names, found, run.outputs, nodes, strict=True):
            if not isinstance(theirs, torch.Tensor):
                continue
            dtype = node.meta["val"].dtype if _same_dtypes(small, whole) else value.dtype
            if value.shape != theirs.shape or value.dtype != dtype:
                raise OracleError(
                    f"output `{name}` of the smaller model is {value.dtype} of shape "
                    f"{tuple(value.shape)}, not {dtype} of shape {tuple(theirs.shape)}"
                )
    yield from ()


def _reports(
    runs: Iterable[OriginalRun], small: nn.Module, dtype: torch.dtype | None, same: bool = True
) -> Iterator[OutputReport]:
    for run in runs:
        found = _run(small, run, dtype)
        for name, theirs, mine in zip(run.names, run.outputs, found, strict=True):
            report = compared(name, theirs, mine, same_dtype=same)
            if report.problem:
                raise OracleError(
                    "the smaller model does not compute what the original does without the removed "
                    f"units: output `{name}` {report.problem}{run.example.what}. It must not be "
                    "used; please report the model"
                )
            yield report


def _run(small: nn.Module, run: OriginalRun, dtype: torch.dtype | None) -> list[Any]:
    """The outputs of the smaller model, flat."""
    args, kwargs = run.example.args, run.example.kwargs
    if dtype is not None and isinstance(small, fx.GraphModule):
        outputs = Run(small, dtype).outputs(flatten(small, named(small, args, kwargs)))
    else:
        with as_captured(small):
            try:
                outputs = pytree.tree_leaves(call(small, args, kwargs, dtype=dtype))
            except FxpruneError:
                raise
            except Exception as error:
                if dtype is not None:
                    raise
                raise OracleError(
                    f"the smaller model does not run{run.example.what}: {first_line(error)}"
                ) from error
    if len(outputs) != len(run.outputs):
        raise OracleError(
            f"the smaller model gives {len(outputs)} outputs, the original {len(run.outputs)}"
        )
    return outputs


def _same_dtypes(small: nn.Module, whole: Traced) -> bool:
    """Whether the smaller model was not converted to other dtypes."""
    mine = {parameter.dtype for parameter in small.parameters()}
    return mine <= {tensor.dtype for tensor in whole.tensors.values()}


def first_line(error: Exception) -> str:
    """The first line of a message that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"
