"""Arguments of ``aten.slice``, with their defaults."""

from __future__ import annotations

from typing import Any

from torch import fx

END = 2**63 - 1


def slice_bounds(node: fx.Node) -> tuple[int, Any, Any, int]:
    """Axis, start, end and step of an ``aten.slice.Tensor`` node.

    Start and end are None, integers or nodes of symbolic sizes.
    """
    names = {"dim": 0, "start": None, "end": None, "step": 1}
    given: dict[str, Any] = {**names, **node.kwargs}
    given.update(zip(names, node.args[1:], strict=False))
    return given["dim"], given["start"], given["end"], given["step"]
