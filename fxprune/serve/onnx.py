"""A pruned graph as an ONNX model, for ONNX Runtime and what else reads the format."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneWarning, ServeError, TraceError
from fxprune.files import check_writable, writing
from fxprune.proof.runs import call
from fxprune.proof.smaller import first_line
from fxprune.serve import onnx_ops
from fxprune.serve.portable import File, Portable, portable
from fxprune.trace import inputs
from fxprune.trace.guards import Guards
from fxprune.trace.outputs import compared
from fxprune.trace.storage import written

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2**31 - 2**24  # bytes of a file; what is larger has its tensors beside it


def export(
    graph_module: fx.GraphModule,
    path: str | os.PathLike[str],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    verify: bool = True,
) -> Path:
    """Write a graph as an ONNX model, by ``torch.onnx.export``, see :func:`fxprune.export`.

    An ONNX model checks none of the conditions that the graph puts to sizes: they stand in its
    metadata, under ``fxprune``.

    Args:
        graph_module: the graph.
        path: the file.
        args: example positional inputs.
        kwargs: example keyword inputs.
        verify: run the file in ONNX Runtime on the example inputs, and on inputs of another size
            where sizes are free, and compare it with the graph.

    Raises:
        ServeError: packages are missing, the graph keeps a state, or ONNX has no form for it.
        TraceError: the file does not compute what the graph does. Nothing is written.
    """
    path = Path(path)
    check_packages()
    check_writable(path)
    with portable(graph_module, args, kwargs, flat=True) as found:
        _check_state(found.graph_module)
        program = _converted(found)
        with writing(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            size = sum(t.nbytes for t in found.graph_module.state_dict().values())
            program.save(whole, external_data=size > _LARGEST)
            if verify:
                _check_file(whole, found)
            for each in sorted(Path(folder).iterdir(), key=lambda each: each == whole):
                os.replace(each, path.with_name(each.name))  # the model itself comes last
    if found.lost:
        warnings.warn(f"{path}: {found.lost}", FxpruneWarning, stacklevel=3)
    return path


def check_packages() -> None:
    """Refuse to start without the packages that write and run ONNX.

    Raises:
        ServeError: some are missing; the message says how to get them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServeError(
            f"ONNX needs {' and '.join(missing)}: pip install 'fxprune[onnx]' (in a checkout: "
            "pip install -e '.[onnx]')"
        )


def _check_state(graph_module: fx.GraphModule) -> None:
    changed = written(graph_module.graph)
    for node in graph_module.graph.nodes:
        if node in changed and node.op in ("get_attr", "placeholder"):
            what = "its input" if node.op == "placeholder" else "its buffer"
            raise ServeError(
                f"the graph writes into {what} {node.target}, and an ONNX model keeps no state: "
                "have the model give that value as an output"
            )


def _converted(found: Portable, optimize: bool = True) -> Any:
    names = [*found.program.call_spec.out_spec.context]
    onnx_ops.settle(found.program.graph)
    try:
        program = torch.onnx.export(
            found.program,
            dynamo=True,
            output_names=names,
            verbose=False,
            optimize=optimize,
            custom_translation_table=onnx_ops.table(),
        )
        assert program is not None
    except Exception as error:  # whatever the exporter raises
        inner: BaseException = error
        while inner.__cause__ is not None:  # which says more than what wraps it
            inner = inner.__cause__
        raise ServeError(f"torch.onnx cannot say this graph: {first_line(inner)}") from error
    program.model.metadata_props["fxprune"] = "; ".join(_conditions(found.guards))
    return program


def _conditions(guards: Guards) -> list[str]:
    """What the graph asks of its inputs, in words."""
    said = []
    for name, (low, high) in guards.ranges.items():
        said.append(
            f"{guards.word(name)} is {low} or more"
            if high is None
            else f"{guards.word(name)} is {low} to {high}"
        )
    said += [f"the numbers in {name} are those of the example" for name in guards.held]
    return said + [guards.describe(each) for each in guards.conditions]


def _check_file(file: Path, found: Portable) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ServeError(f"ONNX Runtime does not take this model: {first_line(error)}") from error
    names = [each.name for each in session.get_outputs()]
    other = inputs.at_other_size(found)
    for args, kwargs in filter(None, ((found.args, found.kwargs), other)):
        expected = call(found.graph_module, args, kwargs, pure=True)
        feed = dict(
            zip(
                [each.name for each in session.get_inputs()],
                [np.asarray(x.cpu()) for x in pytree.tree_leaves((args, kwargs))],
                strict=True,
            )
        )
        for name, value in zip(names, session.run(None, feed), strict=True):
            report = compared(name, expected[name].cpu(), torch.from_numpy(value))
            if report.problem:
                raise TraceError(
                    f"the ONNX model does not compute what the graph does: output `{name}` "
                    f"{report.problem}. It was not written; please report the model"
                )


class Onnx(File):
    """Writes ONNX models."""

    name: ClassVar[str] = "onnx"
    export = staticmethod(export)
    how: ClassVar[str] = "run it with onnxruntime.InferenceSession({path!r})"

    def _refused(self, graph_module: fx.GraphModule) -> str:
        found = super()._refused(graph_module)
        if found or any(importlib.util.find_spec(name) is None for name in _PACKAGES):
            return found
        try:
            _check_state(graph_module)
        except ServeError as error:
            return str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FxpruneWarning)  # it is for who writes
            try:
                with portable(graph_module, flat=True, blank=True) as ready:
                    _converted(ready, optimize=False)  # which computes what is constant
            except ServeError as error:
                return str(error) if _lacks(error) else ""
            except TraceError:  # what fails without weights need not fail with them
                return ""
        return ""


def _lacks(error: BaseException | None) -> bool:
    """Whether ONNX has no form for an op."""
    while error is not None and type(error).__name__ != "DispatchError":
        error = error.__cause__
    return error is not None


ENGINE = Onnx()
