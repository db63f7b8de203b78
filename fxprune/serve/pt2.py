"""A pruned graph as a ``.pt2`` archive that runs where neither its class nor fxprune is known."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx

from fxprune.errors import CheckpointError, FxpruneWarning, TraceError
from fxprune.files import Patient, check_writable, replacing
from fxprune.serve.portable import portable
from fxprune.trace import symbols


def export(
    graph_module: fx.GraphModule,
    path: str | os.PathLike[str],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a graph as a ``.pt2`` archive, by ``torch.export.save``.

    ``torch.export.load(path).module()`` gives it back, with torch alone. It computes what the graph
    does in evaluation mode, for other batch and sequence sizes too where the graph takes them.
    Outputs of plain tuples, lists and dicts stay as they are. An output of a class, such as those
    of transformers, becomes a dict of its tensors: ``{"logits": ...}``.

    Args:
        graph_module: what :func:`fxprune.rewrite` gave, trained since, perhaps.
        path: the file to write. It appears whole or not at all, and replaces an older one.
        args: example positional inputs as a tuple, or one tensor.
        kwargs: example keyword inputs. If both are left out, zeros of the shapes are used that
            the model was traced with.

    Returns:
        The file.

    Raises:
        TraceError: no inputs are given and none are recorded in the graph, they do not fit, or the
            graph cannot be exported (the message says why).
        CheckpointError: the weights are on ``meta``, or the file cannot be written.

    Warns:
        FxpruneWarning: a batch or sequence size could not be kept symbolic.
    """
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
        warnings.warn(f"{path}: {found.lost}", FxpruneWarning, stacklevel=2)
    return path
