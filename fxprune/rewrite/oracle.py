"""The oracle: the smaller model must compute what the original does with those units zeroed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.branches.bypass import BypassedRun
from fxprune.errors import OracleError
from fxprune.plan import Plan
from fxprune.rewrite.masked import Masked
from fxprune.rewrite.resize import planned
from fxprune.trace.lockstep import flatten, input_names
from fxprune.trace.modes import evaluation
from fxprune.trace.traced import Traced

# Largest difference allowed, relative to the largest output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class VerifyReport:
    """What the oracle measured.

    Attributes:
        max_abs_error: largest difference of any output element.
        scale: largest absolute output of the original.
        tolerance: largest ``relative_error`` allowed for the output's dtype.
        normalised: pruned groups whose units are averaged in a norm. There the original was run
            with the norms taken over the kept units.
    """

    max_abs_error: float
    scale: float
    tolerance: float
    normalised: tuple[str, ...]

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
    """Outputs of the original with the removed units switched off, to compare with later.

    Attributes:
        outputs: every output.
        normalised: see :class:`VerifyReport`.
        error: largest difference that bypassing branches and blocks made by itself.
    """

    outputs: tuple[Any, ...]
    normalised: tuple[str, ...]
    error: float = 0.0


def verify(traced: Traced, small: nn.Module, plan: Plan, example: Any = None) -> VerifyReport:
    """Prove that ``small`` is the original without the plan's removed units.

    Runs the original with those units zeroed at every parameter and compares the outputs. Where a
    removed unit is averaged in a norm, zeroing is not removal: there the norm is taken over the
    kept units, everything else being the original's full-size computation. Where residual branches
    or blocks went, the original runs with their terms zeroed, or with what left a block overwritten
    by what entered it; that must be what the model without them gives, whose units are then zeroed.

    Args:
        traced: the original, with real weights.
        small: the smaller model.
        plan: what was removed.
        example: inputs: keyword arguments as a mapping, positional ones as a tuple, or one tensor.
            The traced example if left out.

    Returns:
        The measured error.

    Raises:
        OracleError: the outputs differ in shape, are not finite or differ by more than the
            tolerance of their dtype; or the model has no weights.
    """
    return compare(reference(traced, plan, example), small, traced, example)


def reference(traced: Traced, plan: Plan, example: Any = None) -> Reference:
    """Run the original with the removed units switched off.

    Returns:
        The outputs, in which intermediate values are cut to the size the smaller model gives.
    """
    if any(tensor.is_meta for tensor in traced.tensors.values()):
        raise OracleError("a model on the meta device has no weights to verify with")
    args, kwargs = _inputs(traced, example)
    flat = _flatten(traced.graph_module, args, kwargs)
    whole = traced.original or traced
    graph, resize = planned(traced, plan)
    traced = graph.traced
    error = _check_bypassed(whole, traced, flat) if plan.removed else 0.0
    with torch.no_grad():
        results = Masked(traced, graph, resize).run(*flat, enable_io_processing=False)
    outputs = pytree.tree_leaves(results)
    nodes = pytree.tree_leaves(traced.graph_module.graph.output_node().args[0])
    for place in graph.inferred.intermediate:
        outputs[place] = resize.slice(outputs[place], resize.axes(nodes[place]))
    return Reference(tuple(outputs), tuple(g for g in plan.kept if graph[g].normalised), error)


@torch.no_grad()
def _check_bypassed(original: Traced, shorter: Traced, flat: list[Any]) -> float:
    """How far the model without branches and blocks is from the original with them off."""
    run = BypassedRun(original, shorter.removed).run(*flat, enable_io_processing=False)
    expected = Reference(tuple(pytree.tree_leaves(run)), ())
    runner = fx.Interpreter(shorter.graph_module)
    actual = pytree.tree_leaves(runner.run(*flat, enable_io_processing=False))
    return _compare(expected, actual).max_abs_error


def compare(
    expected: Reference, small: nn.Module, traced: Traced, example: Any = None
) -> VerifyReport:
    """Run the smaller model and compare it with a reference; see :func:`verify`."""
    args, kwargs = _inputs(traced, example)
    with torch.no_grad(), evaluation(small):
        report = _compare(expected, pytree.tree_leaves(small(*args, **kwargs)))
    return replace(report, max_abs_error=max(report.max_abs_error, expected.error))


def _compare(expected: Reference, actual: list[Any]) -> VerifyReport:
    worst, scale, tolerance = 0.0, 0.0, 0.0
    for place, (mine, theirs) in enumerate(zip(actual, expected.outputs, strict=True)):
        if not isinstance(mine, torch.Tensor):
            continue
        if mine.shape != theirs.shape:
            raise OracleError(
                f"output {place} of the smaller model has shape {tuple(mine.shape)}, "
                f"the original {tuple(theirs.shape)}"
            )
        if not mine.is_floating_point():
            worst = max(worst, float((mine != theirs).any()))
            continue
        if not torch.isfinite(mine).all() and torch.isfinite(theirs).all():
            raise OracleError(f"output {place} of the smaller model is not finite")
        difference = (mine.double() - theirs.double()).abs().nan_to_num()
        worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
        scale = max(scale, float(theirs.abs().max()) if theirs.numel() else 0.0)
        tolerance = max(tolerance, TOLERANCE.get(mine.dtype, 1e-4))
    report = VerifyReport(worst, scale, tolerance, expected.normalised)
    if report.relative_error > tolerance:
        raise OracleError(
            "the smaller model does not compute what the original does without the removed units: "
            f"{report}. It must not be used; please report the model"
        )
    return report


def _inputs(traced: Traced, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example is None:
        return traced.args, dict(traced.kwargs)
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple):
        return example, {}
    if traced.kwargs and not traced.args:
        return (), {next(iter(traced.kwargs)): example}
    return (example,), {}


def _flatten(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Inputs in the order of the graph's placeholders."""
    names = input_names(module)
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    missing = [name for name in names if name not in named]
    if missing or len(named) > len(names):
        raise OracleError(
            f"the example must have the inputs the model was traced with: {', '.join(names)}"
        )
    return flatten(module, named)
