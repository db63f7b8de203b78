"""Fidelity: the traced graph must give what the model itself gives."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneError, FxpruneWarning, TraceError
from fxprune.proof.runs import call, written_tensors
from fxprune.trace.attributes import get_attribute
from fxprune.trace.modes import as_captured
from fxprune.trace.outputs import OutputReport, compared, paths
from fxprune.trace.traced import Traced

COMPARED = "compared with the model"


class NotRunnableError(TraceError):
    """The model itself does not run on the inputs."""


@torch.no_grad()
def check_fidelity(
    traced: Traced, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None
) -> str:
    """Run the original module and its graph on the same inputs and compare them.

    Every output is compared, and every buffer that the graph writes into. Both draw the same random
    numbers. Costs one forward pass of each; both are left as they were.

    Args:
        traced: the model; of one without some branches and blocks, the whole one is compared.
        args: positional inputs; the traced example if both are left out.
        kwargs: keyword inputs.

    Returns:
        What was done, in words: on ``meta`` nothing can be run.

    Raises:
        TraceError: they differ; the message names the first output that does, and by how much.
    """
    traced = traced.original or traced
    module, graph_module = traced.module, traced.graph_module
    if any(t.is_meta for t in (*traced.tensors.values(), *module.parameters())):
        return "not compared with the model: on meta it cannot run"
    if args is None and kwargs is None:
        args, kwargs = traced.args, traced.kwargs
    args, kwargs = args or (), kwargs or {}
    names = written_tensors(graph_module)
    before = {name: get_attribute(graph_module, name).clone() for name in names}
    with as_captured(module):
        try:
            expected, theirs = _run(module, args, kwargs, names)
        except Exception as error:
            raise NotRunnableError(
                f"{_name(traced)} does not run on these inputs ({type(error).__name__}: {error})"
            ) from error
    try:
        actual, mine = _run(graph_module, args, kwargs, names, pure=True)
    except FxpruneError:
        raise
    except Exception as error:
        raise TraceError(
            f"the graph of {_name(traced)} does not run on inputs that the model takes "
            f"({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error
    _check_constants(traced, before, theirs, mine)
    for report in _compared(expected, actual, theirs, mine):
        if report.problem:
            raise TraceError(_difference(traced, report, args, kwargs))
    if said := _fused(module, args, kwargs, expected):
        warnings.warn(f"{_name(traced)}: {said}", FxpruneWarning, stacklevel=2)
    return COMPARED


def _check_constants(
    traced: Traced, before: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any]
) -> None:
    """Refuse a graph that writes into a constant that the model makes anew in every call."""
    for name, value in before.items():
        if theirs[name] is None and compared(name, value, mine[name]).problem:
            raise TraceError(
                f"the graph of {_name(traced)} writes into its constant {name}, so that each call "
                f"gives something else. {_WAY_OUT}"
            )


def _fused(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], plain: Any) -> str:
    """What torch's fused encoder layers make different, which no graph has; "" for nothing."""
    if not torch.backends.mha.get_fastpath_enabled() or not any(
        isinstance(each, nn.TransformerEncoderLayer) for each in module.modules()
    ):
        return ""
    with as_captured(module), contextlib.suppress(Exception):
        torch.backends.mha.set_fastpath_enabled(True)  # as_captured puts it back
        for report in _compared(plain, call(module, args, kwargs), {}, {}):
            if report.problem:
                return (
                    f"without gradients, torch's fused layers of nn.TransformerEncoder give output "
                    f"`{report.path}` otherwise than the layers themselves, whose values at padded "
                    "places the graph keeps. With enable_nested_tensor=False, or "
                    "torch.backends.mha.set_fastpath_enabled(False), the model does as well"
                )
    return ""


def _run(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Iterable[str],
    *,
    pure: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """What a module gives, and what it leaves in tensors of these names."""
    left: dict[str, Any] = {}
    result = call(
        root,
        args,
        kwargs,
        after=lambda: left.update((n, _state(root, n)) for n in names),
        pure=pure,
    )
    return result, left


def _state(root: nn.Module, name: str) -> Any:
    try:
        value = get_attribute(root, name)
    except AttributeError:
        return None
    return value.clone() if isinstance(value, torch.Tensor) else value


def _compared(
    expected: Any, actual: Any, before: dict[str, Any], after: dict[str, Any]
) -> list[OutputReport]:
    theirs, mine = _named(expected), _named(actual)
    reports = [compared(path, value, mine.get(path)) for path, value in theirs.items()]
    reports += [
        OutputReport(path, problem="is none of the model's") for path in mine if path not in theirs
    ]
    return reports + [
        compared(f"the buffer {name}", value, after[name])
        for name, value in before.items()
        if value is not None
    ]


def _named(outputs: Any) -> dict[str, Any]:
    leaves, spec = pytree.tree_flatten(outputs)
    return dict(zip(paths(spec), leaves, strict=True))


def _difference(
    traced: Traced, report: OutputReport, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    text = (
        f"the graph of {_name(traced)} does not compute what the model does: "
        f"output `{report.path}` {report.problem}. "
    )
    with as_captured(traced.module):
        first, again = (call(traced.module, args, kwargs, seed=seed) for seed in (0, 1))
    if any(each.problem for each in _compared(first, again, {}, {})):
        return text + (
            "The model draws random numbers, in another order than its graph: make it "
            "deterministic, or leave the proof out (verify=False)"
        )
    return text + _WAY_OUT


_WAY_OUT = (
    "It was captured wrongly: it must not be pruned; please report the model, or write what "
    "differs in another way (no writing in place into copies, no branches on values)"
)


def _name(traced: Traced) -> str:
    return type(traced.module).__name__
