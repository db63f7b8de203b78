"""Where in the user's code a node comes from."""

from __future__ import annotations

import re
from pathlib import PurePath

from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def location(node: fx.Node) -> str:
    """The innermost line of model code behind a node, as ``file.py:line`` ("" if unknown)."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [f for f in frames if "/torch/" not in f[0].replace("\\", "/")]
    if not frames:
        return ""
    path, line, _ = (outside or frames)[-1]
    return f"{PurePath(path).name}:{line}"


def module_path(node: fx.Node) -> str:
    """FQN of the innermost module whose forward made the node ("" for the root)."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return str(list(stack.values())[-1][0])
