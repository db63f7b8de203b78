"""How long a forward pass and generation take, and how much memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def measure(
    model: nn.Module,
    kind: str,
    batch: int,
    prompt: int,
    new: int,
    rounds: int,
    before: int | None,
    vocabulary: int,
) -> Speed:
    """Time one way to run a model, and see what memory it takes.

    Args:
        model: a causal language model or a GraphModule of one; for ``generate`` a transformers
            model that can.
        kind: see :class:`Speed`; generation is greedy, and the end of text is not taken.
        batch: rows.
        prompt: tokens in.
        new: tokens out.
        rounds: to take the median of.
        before: see :func:`fxprune.measure.memory.peak`.
        vocabulary: ids below it are tokens.
    """
    call = _call(model, kind, batch, prompt, new, vocabulary)
    (seconds,), peak = memory.peak(
        device_of(model), lambda: report.latency([call], rounds=rounds), before
    )
    return _speed(kind, batch, prompt, new, seconds, peak)


def in_turns(
    models: Sequence[nn.Module],
    found: Sequence[Sequence[Speed]],
    vocabularies: Sequence[int],
    rounds: int,
) -> list[tuple[Speed, ...]]:
    """Time models again, in turns, so that their ratios are fair; memory stays as it was found.

    Args:
        models: two or more, all in memory.
        found: what :func:`measure` gave for each.
        vocabularies: see there, of each.
        rounds: to take the median of.
    """
    timed: list[list[Speed]] = [[] for _ in models]
    runs = dict.fromkeys((s.kind, s.batch, s.prompt, s.new) for each in found for s in each)
    for run in runs:
        known = [
            (place, speed)
            for place, each in enumerate(found)
            for speed in each
            if (speed.kind, speed.batch, speed.prompt, speed.new) == run
        ]
        calls = [_call(models[place], *run, vocabularies[place]) for place, _ in known]
        for (place, speed), seconds in zip(
            known, report.latency(calls, rounds=rounds), strict=True
        ):
            timed[place].append(_speed(*run, seconds, speed.peak_memory))
    return [tuple(each) for each in timed]


def _speed(kind: str, batch: int, prompt: int, new: int, seconds: float, peak: int | None) -> Speed:
    tokens = batch * (new or prompt)
    return Speed(kind, batch, prompt, new, seconds, tokens / seconds, peak)


def _call(
    model: nn.Module, kind: str, batch: int, prompt: int, new: int, vocabulary: int
) -> Callable[[], object]:
    ids = _prompt(model, batch, prompt, vocabulary)
    if kind == "forward":
        return report.forward(model, (), {"input_ids": ids})

    def call() -> object:
        written = generated(model, ids, new)
        if ids.device.type == "cuda":
            torch.cuda.synchronize(ids.device)
        return written

    return call


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
