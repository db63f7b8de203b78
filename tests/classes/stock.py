"""Whether a smaller model of the same class comes back from disk, and by whom."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune.errors import SelectionError
from fxprune.plan import Plan
from tests.classes.attempt import Mismatch, NothingThere, message

STOCK, OURS, NEARLY = "s", "h", "~"
TOLERANCE = 1e-4


def comes_back(
    kind: Any, traced: fxprune.Traced, plan: Plan, inputs: Mapping[str, torch.Tensor]
) -> str:
    """Shrink, compare with the rewritten graph, save, and load again.

    Args:
        kind: what loads the class, :func:`tests.classes.build.loader`.
        traced: the model.
        plan: what goes.
        inputs: what outputs are compared on.

    Returns:
        ``s`` if the stock class gives bit-equal logits, ``~`` if they are equal but for rounding,
        ``h`` and why if only ``fxprune.load`` takes it. Notes follow behind a colon.

    Raises:
        Mismatch: the smaller model does not compute what the graph does, or what loads it without
            a word gives other logits.
    """
    model: Any = traced.module
    small: Any = fxprune.shrink(model, plan, traced=traced)
    graph = fxprune.rewrite(traced, plan)
    own = logits(small, inputs)
    error = float((own - logits(graph, inputs)).abs().max() / own.abs().max())
    if not error <= TOLERANCE:
        raise Mismatch(f"shrunk and rewritten differ by {error:.1e}")
    with tempfile.TemporaryDirectory() as folder:
        path = fxprune.save(small, Path(folder, "m"), plan=plan)
        try:
            again = kind.from_pretrained(path).eval()
        except Exception as error:
            why = f"{OURS}: {type(error).__name__}: {message(error)}"
            note = _compared(fxprune.load(path), own, inputs)
            return f"{why}; {note}" if note else why
        note = _compared(again, own, inputs)
        if not note.startswith("not"):
            return f"{STOCK}: {note}" if note else STOCK
        return f"{NEARLY}: {note}"


def _compared(again: Any, own: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """How near a loaded model comes; empty if it is bit-equal.

    Raises:
        Mismatch: other logits altogether.
    """
    got = logits(again, inputs)
    if torch.equal(got, own):
        return ""
    if got.shape == own.shape and torch.equal(logits(copy.deepcopy(again), inputs), own):
        return "bit-equal once its tensors are copied: those of the file are not aligned in memory"
    gap = float((got - own).abs().max() / own.abs().max()) if got.shape == own.shape else math.inf
    if not gap <= TOLERANCE:
        raise Mismatch(f"{type(again).__name__} loads it and gives other logits, {gap:.1e}")
    return f"not bit-equal, {gap:.1e}"


@torch.no_grad()
def logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of any model or graph, the first output that is a tensor."""
    output = model(**inputs)
    found = getattr(output, "logits", None)
    if found is None:
        found = next(x for x in torch.utils._pytree.tree_leaves(output) if torch.is_tensor(x))
    return found  # type: ignore[no-any-return]


def even(graph: Any, scores: Any, kind: str) -> Plan:
    """Half of the units of every group of a kind.

    Raises:
        NothingThere: no group of that kind can be pruned; says why.
    """
    if not any(group.kind == kind and group.size > 1 for group in graph.groups):
        reasons = {g.reason: None for g in graph.frozen if g.kind == kind}
        raise NothingThere("; ".join(map(str, reasons)) or f"no {kind} groups")
    return fxprune.select(graph, scores, kinds=(kind,), budget=fxprune.Budget(units=0.5))


def uneven(graph: Any, scores: Any, kinds: Collection[str]) -> Plan:
    """A plan ranked over all groups of these kinds at once.

    Raises:
        NothingThere: there are no two groups to rank against each other, or all lose alike.
    """
    groups = [g for g in graph.groups if g.kind in kinds and g.size > 1]
    if not groups:
        raise NothingThere("nothing to rank, of what an even plan can take")
    why = "all groups of a size lose alike"
    for ratio in (0.2, 0.15, 0.1, 0.05, 0.02, 0.01):
        try:
            plan = fxprune.select(graph, scores, kinds=kinds, pruning_ratio=ratio)
        except SelectionError as error:
            why = message(error)
            continue
        left = {(g.kind, g.size, len(plan.kept.get(g.name, range(g.size)))) for g in groups}
        if len(left) > len({(g.kind, g.size) for g in groups}):
            return plan
    raise NothingThere(why)
