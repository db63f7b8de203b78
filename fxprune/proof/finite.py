"""Where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxprune.errors import OracleError
from fxprune.proof.runs import Run
from fxprune.trace.source import location, module_path

Flags = Mapping[fx.Node, tuple[bool, bool]]
NAN, INFINITE = 0, 1


def check_finite(
    outputs: list[Any],
    nodes: list[fx.Node],
    names: list[str],
    what: str,
    run: Run,
    inputs: list[Any],
) -> None:
    """Check that a reference can prove something.

    NaN is refused wherever it is. Infinities may be meant (masked scores), and must then come out
    at the same places, but some numbers must be finite.

    Args:
        outputs: of the reference, flat.
        nodes: what gives them.
        names: their paths.
        what: of which sizes the inputs are, in words.
        run: what gave them; it runs once more to find where it began.
        inputs: of that run.

    Raises:
        OracleError: they prove nothing; the message says at which op it began.
    """
    for place, (name, value) in enumerate(zip(names, outputs, strict=True)):
        if not isinstance(value, torch.Tensor) or not value.numel():
            continue
        if not (value.is_floating_point() or value.is_complex()):
            continue
        nan = bool(value.isnan().any())
        if not nan and value.isfinite().any():
            continue
        run.flags = {}
        run.outputs(inputs)
        found = "NaN" if nan else "no finite number"
        raise OracleError(
            f"the original with the removed units switched off gives {found} in output `{name}`"
            f"{what}, which proves nothing. {_began(nodes[place], run.flags, nan)}. Give inputs "
            "for which it is finite: fxprune.verify(traced, small, plan, inputs), or args= and "
            "kwargs= where the model is traced"
        )


def _began(end: fx.Node, flags: Flags, nan: bool) -> str:
    if not nan:
        return f"Infinity began at {_described(_back(end, flags, INFINITE))}"
    node = _back(end, flags, NAN)
    text = f"NaN began at {_described(node)}"
    endless = next((s for s in node.all_input_nodes if flags.get(s, (0, 0))[INFINITE]), None)
    if endless is None:
        return text
    return f"{text}, which reads an infinity from {_described(_back(endless, flags, INFINITE))}"


def _back(node: fx.Node, flags: Flags, which: int) -> fx.Node:
    """The first value on the way to a node that has what the node has."""
    while True:
        source = next((s for s in node.all_input_nodes if flags.get(s, (0, 0))[which]), None)
        if source is None:
            return node
        node = source


def _described(node: fx.Node) -> str:
    if node.op == "placeholder":
        return f"the input {node.target}"
    if node.op == "get_attr":
        return f"the tensor {node.target}"
    module = f" of {path}" if (path := module_path(node)) else ""
    line = f" ({place})" if (place := location(node)) else ""
    return f"{node.target}{module}{line}"
