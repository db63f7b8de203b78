"""A pruned graph as a ``.pt2`` archive that runs where neither its class nor fxprune is known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import fx

from fxprune.errors import CheckpointError, FxpruneWarning, TraceError
from fxprune.files import Patient, check_writable, replacing
from fxprune.serve.portable import File, portable
from fxprune.trace import symbols


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


class Torch(File):
    """Writes ``.pt2`` archives."""

    name: ClassVar[str] = "torch"
    export = staticmethod(export)
    how: ClassVar[str] = "run it with torch.export.load({path!r}).module()"


ENGINE = Torch()
