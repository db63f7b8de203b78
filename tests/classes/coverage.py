"""How much of the matrices of the layers can lose units, and what stands in the way of the rest."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

# Kinds whose units are what a layer computes with, not the stream between layers.
COVERING = frozenset({"mlp", "attention", "query", "expert", "state", "conv", "latent"})
# Below a numbered module that is no leaf itself, as one of several embeddings is.
_IN_A_LAYER = re.compile(r"(^|\.)\d+\.[^.]+\.")
REASONS = 4


def coverage(graph: Any) -> tuple[float, list[str]]:
    """The share of the layers' matrices, by entries, that has an axis in a covering group.

    A matrix is a parameter of two or more axes longer than 1, in a numbered module.

    Returns:
        The share; and why others have none, the largest first, such as
        ``0.31 experts.gate_up_proj: chosen by index``.
    """
    covered, frozen, prunable = set(), {}, {}
    for group in graph.groups:
        for site in group.sites:
            prunable.setdefault(site.tensor, set()).add(group.kind)
            if group.kind in COVERING:
                covered.add(site.tensor)
    for group in graph.frozen:
        for site in group.sites:
            frozen.setdefault(site.tensor, []).append(group)
    sizes = {
        name: tensor.numel()
        for name, tensor in graph.traced.tensors.items()
        if getattr(tensor, "requires_grad", False)
        and _IN_A_LAYER.search(name)
        and sum(size > 1 for size in tensor.shape) > 1
    }
    total, without = sum(sizes.values()), Counter[str]()
    for name, size in sizes.items():
        if name not in covered:
            without[_why(name, frozen.get(name, []), prunable.get(name, set()))] += size
    share = 1 - sum(without.values()) / total if total else 0.0
    reasons = [f"{size / total:.2f} {why}" for why, size in without.most_common(REASONS)]
    reasons = [reason for reason in reasons if not reason.startswith("0.00")]
    return share, reasons


def _why(name: str, frozen: list[Any], kinds: set[str]) -> str:
    """Why a matrix is in no covering group, without the number of its layer."""
    place = re.sub(r"^.*?\.\d+\.", "", name)
    place = re.sub(r"\.\d+\.", ".N.", place).removesuffix(".weight")
    if frozen:
        return f"{place}: {'; '.join(dict.fromkeys(str(group.reason) for group in frozen))}"
    return f"{place}: only {', '.join(sorted(kinds)) or 'no group at all'}"
