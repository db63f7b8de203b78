"""A pruned graph as one file, of the format that its name says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import fx

from fxprune.serve import onnx, pt2


def export(
    graph_module: fx.GraphModule,
    path: str | os.PathLike[str],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Write a graph as a file that runs where neither its class nor fxprune is known.

    A name that ends in ``.onnx`` gives an ONNX model, which is compared with the graph in ONNX
    Runtime before it is there (``pip install 'fxprune[onnx]'``): inputs and outputs have names,
    ``logits``, say, and a single tensor is ``output``. Any other name gives a ``.pt2`` archive of
    ``torch.export.save``; ``torch.export.load(path).module()`` gives it back, with torch alone.
    There outputs of plain tuples, lists and dicts stay as they are, and an output of a class, such
    as those of transformers, becomes a dict of its tensors: ``{"logits": ...}``.

    Both compute what the graph does in evaluation mode, for other batch and sequence sizes too
    where the graph takes them.

    Args:
        graph_module: what :func:`fxprune.rewrite` gave, trained since, perhaps.
        path: the file to write. It appears whole or not at all, and replaces an older one. Of an
            ONNX model above 2 GB the tensors go to a second file, with ``.data`` behind its name.
        args: example positional inputs as a tuple, or one tensor.
        kwargs: example keyword inputs. If both are left out, zeros of the shapes are used that
            the model was traced with.

    Returns:
        The file.

    Raises:
        TraceError: no inputs are given and none are recorded in the graph, they do not fit, or the
            graph cannot be exported (the message says why).
        ServeError: the packages for ONNX are missing, or ONNX cannot say the graph.
        CheckpointError: the weights are on ``meta``, or the file cannot be written.

    Warns:
        FxpruneWarning: a batch or sequence size could not be kept symbolic.
    """
    write = onnx.export if Path(path).suffix == ".onnx" else pt2.export
    return write(graph_module, path, args, kwargs)
