"""How long a forward pass and generation take, and how much memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.hf.open.quiet import quiet
from fxprune.measure import memory, report
from fxprune.trace.inputs import device_of

NO_GENERATE = "a GraphModule has no generate(): it keeps no cache between tokens"


@dataclass(frozen=True)
class Speed:
    """One way to run a model.

    Attributes:
        kind: ``forward``, one pass over ``prompt`` tokens; ``generate``, ``new`` more with a cache.
        batch: rows.
        prompt: tokens in.
        new: tokens out, per row.
        seconds: the median over some rounds, after one that warms up.
        tokens_per_second: tokens in of all rows for ``forward``, tokens out for ``generate``.
        peak_memory: bytes, see :func:`fxprune.measure.memory.meaning`.
    """

    kind: str
    batch: int
    prompt: int
    new: int
    seconds: float
    tokens_per_second: float
    peak_memory: int | None


def why_not_generate(model: nn.Module) -> str | None:
    """Why a model cannot generate, None if it can."""
    if isinstance(model, fx.GraphModule):
        return NO_GENERATE
    can = getattr(model, "can_generate", None)
    if can is None or not can():
        return f"{type(model).__name__} has no generate()"
    return None


def forward(
    model: nn.Module, batch: int, tokens: int, rounds: int, before: int | None, vocabulary: int
) -> Speed:
    """Time a forward pass.

    Args:
        model: a causal language model or a GraphModule of one.
        batch: rows.
        tokens: in each.
        rounds: to take the median of.
        before: see :func:`fxprune.measure.memory.peak`.
        vocabulary: ids below it are tokens.
    """
    inputs = {"input_ids": _prompt(model, batch, tokens, vocabulary)}
    seconds, peak = _timed(model, report.forward(model, (), inputs), rounds, before)
    return Speed("forward", batch, tokens, 0, seconds, batch * tokens / seconds, peak)


def generate(
    model: nn.Module,
    batch: int,
    prompt: int,
    new: int,
    rounds: int,
    before: int | None,
    vocabulary: int,
) -> Speed:
    """Time greedy generation of exactly ``new`` tokens with a cache.

    Args:
        model: a transformers model that can generate.
        batch: rows.
        prompt: tokens in.
        new: tokens out; the end of text is not taken.
        rounds: to take the median of.
        before: see :func:`fxprune.measure.memory.peak`.
        vocabulary: ids below it are tokens.
    """
    ids = _prompt(model, batch, prompt, vocabulary)

    def call() -> object:
        written = generated(model, ids, new)
        if ids.device.type == "cuda":
            torch.cuda.synchronize(ids.device)
        return written

    seconds, peak = _timed(model, call, rounds, before)
    return Speed("generate", batch, prompt, new, seconds, batch * new / seconds, peak)


def _timed(
    model: nn.Module, call: Callable[[], object], rounds: int, before: int | None
) -> tuple[float, int | None]:
    times, most = memory.peak(
        device_of(model), lambda: report.latency([call], rounds=rounds), before
    )
    return times[0], most


@torch.no_grad()
def generated(model: Any, ids: torch.Tensor, new: int) -> torch.Tensor:
    """What is generated greedily with a cache: the tokens in and exactly ``new`` more of each row.

    Args:
        model: a transformers model that can generate.
        ids: the tokens in, (rows, length).
        new: tokens out; the end of text is not taken.
    """
    with quiet():
        written: torch.Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
    assert written.shape == (ids.shape[0], ids.shape[1] + new)
    return written


def _prompt(model: nn.Module, batch: int, tokens: int, vocabulary: int) -> torch.Tensor:
    """Random tokens, the same every time; int64 of shape (batch, tokens)."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, tokens), generator=draw).to(device_of(model))
