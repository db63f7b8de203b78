"""Runs of the smaller model, compared with those of the original."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.data.sweep import moved
from fxprune.errors import FxpruneError, OracleError
from fxprune.proof.examples import named
from fxprune.proof.original import OriginalRun
from fxprune.proof.rounding import Rounding
from fxprune.proof.runs import Run, call
from fxprune.trace.lockstep import Weights, flatten
from fxprune.trace.modes import as_captured
from fxprune.trace.outputs import OutputReport, compared
from fxprune.trace.traced import Traced


def reports(
    runs: Iterable[OriginalRun],
    small: nn.Module,
    dtype: torch.dtype | None,
    same: bool = True,
    rounding: Rounding | None = None,
    weights: Weights | None = None,
) -> Iterator[OutputReport]:
    """How every output compares.

    Args:
        runs: of the original.
        small: the smaller model.
        dtype: what the runs were computed in, if not in the dtype of the model.
        same: the dtypes of the outputs must be equal too.
        rounding: allows what rounding makes of the original, where that is more than the tolerance.
        weights: of the smaller model, if it has none itself; what leaves pieces is compared too.

    Raises:
        OracleError: one differs.
    """
    for run in runs:
        exits: dict[str, Any] = {}
        found = _run(small, run, dtype, weights, exits)
        for place, (name, theirs, mine) in enumerate(
            zip(run.names, run.outputs, found, strict=True)
        ):
            report = compared(name, theirs, mine, same_dtype=same)
            if rounding is not None and 1 < report.used < math.inf:
                slack = rounding.slack(run, place, dtype)
                report = compared(name, theirs, mine, same_dtype=same, slack=slack)
            if report.problem:
                raise OracleError(
                    "the smaller model does not compute what the original does without the removed "
                    f"units: output `{name}` {report.problem}{run.example.what}. It must not be "
                    "used; please report the model"
                )
            yield report
        amplified = rounding is not None and rounding.asked
        for name, mine in exits.items() if not amplified else ():
            report = compared(f"leaving the piece at {name}", run.exits[name], mine)
            if report.problem:
                raise OracleError(
                    f"the smaller model goes astray before its output: {report.path} it "
                    f"{report.problem}{run.example.what}. It must not be used; please report it"
                )
            yield report


def check_kinds(
    run: OriginalRun, small: nn.Module, whole: Traced, weights: Weights | None = None
) -> None:
    """Run the smaller model in its own dtype, and check dtypes and shapes of what it gives.

    For a model of half precision, whose numbers are compared in a higher one.

    Raises:
        OracleError: it does not run, or gives tensors of other shapes or dtypes.
    """
    nodes = pytree.tree_leaves(whole.graph_module.graph.output_node().args[0])
    same = same_dtypes(small, whole)
    for name, mine, theirs, node in zip(
        run.names, _run(small, run, None, weights), run.outputs, nodes, strict=True
    ):
        if not isinstance(theirs, torch.Tensor):
            continue
        dtype = node.meta["val"].dtype if same else mine.dtype
        if mine.shape != theirs.shape or mine.dtype != dtype:
            raise OracleError(
                f"output `{name}` of the smaller model is {mine.dtype} of shape "
                f"{tuple(mine.shape)}, not {dtype} of shape {tuple(theirs.shape)}"
            )


def same_dtypes(small: nn.Module, whole: Traced) -> bool:
    """Whether the smaller model was not converted to other dtypes."""
    mine = {parameter.dtype for parameter in small.parameters()}
    return mine <= {tensor.dtype for tensor in whole.tensors.values()}


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')}"


def _run(
    small: nn.Module,
    run: OriginalRun,
    dtype: torch.dtype | None,
    weights: Weights | None = None,
    exits: dict[str, Any] | None = None,
) -> list[Any]:
    """The outputs of the smaller model, flat; ``exits`` gets what leaves its pieces."""
    args, kwargs = run.smaller.args, run.smaller.kwargs
    pure = isinstance(small, fx.GraphModule)
    if weights is not None and isinstance(small, fx.GraphModule):
        device = next(x.device for x in run.outputs if isinstance(x, torch.Tensor))
        stepped = Run(small, dtype, weights=weights, watched=run.exits)
        with as_captured(small):
            outputs = stepped.outputs(moved(flatten(small, named(small, args, kwargs)), device))
        if exits is not None:
            exits.update(stepped.kept)
    elif dtype is not None and isinstance(small, fx.GraphModule):
        outputs = Run(small, dtype).outputs(flatten(small, named(small, args, kwargs)))
    else:
        with as_captured(small):
            try:
                outputs = pytree.tree_leaves(call(small, args, kwargs, dtype=dtype, pure=pure))
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
