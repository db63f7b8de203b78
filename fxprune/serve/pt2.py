"""A pruned graph as a ``.pt2`` archive that runs where neither its class nor fxprune is known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from fxprune.branches.unit import KINDS
from fxprune.errors import CheckpointError, FxpruneWarning, TraceError
from fxprune.files import Patient, check_writable, replacing
from fxprune.select.target import Target
from fxprune.serve.engine import Engine, Pruned
from fxprune.serve.portable import graph_of, portable
from fxprune.trace import symbols

if TYPE_CHECKING:
    from fxprune.groups.dependency import DependencyGraph


def export(
    graph_module: fx.GraphModule,
    path: str | os.PathLike[str],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a graph as a ``.pt2`` archive, see :func:`fxprune.export`."""
    path = Path(path)
    check_writable(path)
    with portable(graph_module, args, kwargs) as found:
        symbols.forget_ones(found.program)
        try:
            with replacing(path) as temporary, temporary.open("wb") as stream:
                patient = Patient(stream)
                torch.export.save(found.program, cast(Any, patient))
                patient.finish()
        except CheckpointError:
            raise
        except Exception as error:  # whatever torch's serializer has no form for
            raise TraceError(f"{path}: torch.export cannot save this graph: {error}") from error
    if found.lost:
        warnings.warn(f"{path}: {found.lost}", FxpruneWarning, stacklevel=3)
    return path


class Torch(Engine):
    """Writes ``.pt2`` archives."""

    name = "torch"

    def target(self, graph: DependencyGraph) -> Target:
        """See :meth:`Engine.target`: a graph says everything."""
        return Target(self.name, depth=KINDS, biases=True)

    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        """See :meth:`Engine.write`.

        Args:
            pruned: the model.
            path: the file.
            options: ``args`` and ``kwargs``, as for :func:`export`.
        """
        export(graph_of(pruned.model), path, **options)
        return f"run it with torch.export.load({str(path)!r}).module()"


ENGINE = Torch()
