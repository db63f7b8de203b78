"""How much a model repeats itself when it continues text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.measure.speed import generated
from fxprune.progress import track
from fxprune.trace.inputs import device_of

GRAMS = (1, 2, 3)
REPEATED = 4


@dataclass(frozen=True)
class Continuations:
    """What greedy continuations of a text are like.

    Attributes:
        text: its name.
        prompt: tokens in.
        new: tokens out.
        repeated: of each continuation, the share of its 4-grams of tokens that stood in it before
            (seq-rep-4 of Welleck et al., arXiv 1908.04319, section 4.1).
        distinct: for n of 1, 2 and 3, different n-grams over all n-grams of all continuations
            (distinct-n of Li et al., arXiv 1510.03055, section 5).
        digest: of the prompts' tokens; models with one digest continued the same.
    """

    text: str
    prompt: int
    new: int
    repeated: tuple[float, ...]
    distinct: dict[int, float]
    digest: str


def continuations(
    model: nn.Module,
    name: str,
    prompts: torch.Tensor,
    new: int,
    *,
    digest: str,
    batch_size: int = 4,
    progress: bool = False,
) -> Continuations:
    """Continue the beginnings of texts greedily, and count what occurs again.

    Args:
        model: a transformers model that can generate.
        name: of the text.
        prompts: int64 (count, tokens).
        new: tokens out; the end of text is not taken.
        digest: of the prompts.
        batch_size: rows at once.
        progress: show a progress bar.
    """
    written = [
        row[prompts.shape[1] :].tolist()
        for part in track(torch.split(prompts, batch_size), f"continuing {name}", progress)
        for row in generated(model, part.to(device_of(model)), new)
    ]
    return Continuations(
        name,
        prompts.shape[1],
        new,
        tuple(1 - distinct([row], REPEATED) for row in written),
        {n: distinct(written, n) for n in GRAMS},
        digest,
    )


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams; 1 where there are none."""
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
