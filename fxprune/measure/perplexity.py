"""Perplexity over windows of text, which may overlap and may begin with a BOS token."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from fxprune.data.loader import Source
from fxprune.data.loss import logits_of
from fxprune.data.sweep import sweeping
from fxprune.errors import CalibrationError
from fxprune.progress import track
from fxprune.trace.inputs import device_of
from fxprune.trace.modes import quick_products
from fxprune.trace.traced import Traced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS = ("auto", "window", "none")


@dataclass(frozen=True, eq=False)
class Window:
    """Tokens that the model sees at once.

    Attributes:
        ids: int64 tensor of shape (length,), a BOS token included.
        scored: how many of the last tokens count; those before are context.
    """

    ids: torch.Tensor
    scored: int


@dataclass(frozen=True)
class Score:
    """Perplexity of a text.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of a token; infinite where it
            overflows, NaN where the model gives NaN.
        stderr: its standard error, from the spread over windows; None for a single window.
        windows: how many windows were seen.
        tokens: how many tokens count.
        losses: of each window, the mean negative log-likelihood of its tokens; windows that are
            alike come together, and the same windows in the same order for every model.
    """

    perplexity: float
    stderr: float | None
    windows: int
    tokens: int
    losses: tuple[float, ...] = ()


def bos_token(tokenizer: PreTrainedTokenizerBase, policy: str = "auto") -> int | None:
    """The token that every window begins with, None for none.

    Args:
        tokenizer: of the model.
        policy: ``window`` for its BOS token; ``none``; ``auto`` for BOS if the tokenizer puts one
            before a text by itself, as those of Gemma and Llama do and those of GPT-2 do not.

    Raises:
        CalibrationError: no such policy, or ``window`` and the tokenizer has no BOS token.
    """
    if policy not in BOS:
        raise CalibrationError(f"no BOS policy {policy!r}: take {', '.join(BOS)}")
    bos: int | None = tokenizer.bos_token_id
    if policy == "window" and bos is None:
        raise CalibrationError("the tokenizer has no BOS token to put into every window")
    if policy == "auto" and bos is not None:
        encoded: list[int] = tokenizer("a")["input_ids"]
        return bos if encoded[:1] == [bos] else None
    return bos if policy == "window" else None


def windows(
    ids: torch.Tensor,
    length: int = 128,
    *,
    stride: int | None = None,
    bos: int | None = None,
    limit: int | None = None,
) -> list[Window]:
    """Cut tokens into windows in which no token counts twice.

    Without a stride windows do not overlap and what is left at the end is dropped, as in the
    pruning papers. With one, each window begins ``stride`` tokens after the one before and only
    tokens that no window had before count, as in transformers' page on perplexity; the last window
    is shorter where the text ends.

    Args:
        ids: int64 tensor of shape (n,), without BOS.
        length: tokens in a window, BOS included.
        stride: tokens from the beginning of a window to that of the next.
        bos: put at the head of every window; the token after it counts too, then.
        limit: at most so many windows, spread evenly over the text.

    Raises:
        CalibrationError: fewer tokens than a window needs, or a stride that leaves tokens out.
    """
    room, blind = length - (bos is not None), int(bos is None)
    if room <= blind or len(ids) < room:
        raise CalibrationError(
            f"the evaluation text has {len(ids)} tokens, a window needs {max(room, 1 + blind)}; "
            "give a longer text or a shorter length"
        )
    if stride is not None and not 1 <= stride <= room:
        raise CalibrationError(f"stride {stride}: with windows of {length} take 1 to {room}")
    if limit is not None and limit < 1:
        raise CalibrationError(f"{limit} windows: take at least 1")
    places = list(_places(len(ids), room, stride, blind))
    if limit is not None and limit < len(places):
        places = [places[i] for i in torch.linspace(0, len(places) - 1, limit).long().tolist()]
    head = ids.new_full((1 - blind,), bos or 0)
    return [Window(torch.cat([head, ids[a:b]]), scored) for a, b, scored in places]


def _places(n: int, room: int, stride: int | None, blind: int) -> Iterator[tuple[int, int, int]]:
    """Where windows begin and end, and how many of their tokens count."""
    begin = done = 0
    while done < n and (stride is not None or begin + room <= n):
        end = min(begin + room, n)
        # The first token of a window without BOS is not predicted.
        if scored := min(end - done, end - begin - blind):
            yield begin, end, scored
        begin, done = begin + (stride or room), end


@quick_products()
@torch.no_grad()
def perplexity(
    model: nn.Module | Traced,
    windows: Sequence[Window],
    *,
    batch_size: int = 4,
    progress: bool = False,
    stream: Source | None = None,
) -> Score:
    """``exp`` of the mean negative log-likelihood of each token that counts.

    Args:
        model: a causal language model or a GraphModule of one, called with ``input_ids=``. It
            returns logits of shape (batch, length, vocabulary), or something that has ``.logits``.
            With ``stream`` what :func:`fxprune.trace` gave; it may be without weights.
        windows: from :func:`windows`, at least one.
        batch_size: windows per forward pass.
        progress: show a progress bar.
        stream: where to read weights from, see :func:`fxprune.estimate`: all windows go through one
            piece of the model after the other.
    """
    alike: dict[tuple[int, int], list[Window]] = defaultdict(list)
    for window in windows:
        alike[len(window.ids), window.scored].append(window)
    batches = [
        (torch.stack([w.ids for w in same[i : i + batch_size]]), scored)
        for (_, scored), same in alike.items()
        for i in range(0, len(same), batch_size)
    ]
    sums: list[tuple[float, int]] = []

    def add(number: int, output: Any) -> None:
        ids, scored = batches[number]
        predicted = logits_of(whole, output, "no logits; perplexity needs a language model")
        predicted = predicted[:, -scored - 1 : -1].flatten(0, 1).float()
        there = ids[:, -scored:].flatten().to(predicted.device)
        loss = F.cross_entropy(predicted, there, reduction="none")
        sums.extend((x, scored) for x in loss.view(len(ids), scored).double().sum(1).tolist())

    if isinstance(model, Traced):
        whole = model.module
        if stream is None:
            raise CalibrationError("a traced model is measured in pieces: give stream=")
        data = [{"input_ids": ids} for ids, _ in batches]
        with sweeping(model, stream, data, progress=progress) as sweep:
            sweep.forward(len(sweep.weights.pieces), output=add)
    else:
        whole, device = model, device_of(model)
        for number, (ids, _) in enumerate(track(batches, "perplexity", progress)):
            add(number, model(input_ids=ids.to(device)))
    return _score(sums)


def _score(sums: Sequence[tuple[float, int]]) -> Score:
    """Of each window the summed negative log-likelihood, and how many tokens that is of."""
    count, tokens = len(sums), sum(n for _, n in sums)
    mean = sum(x for x, _ in sums) / tokens
    try:
        found = math.exp(mean)
    except OverflowError:
        found = math.inf
    stderr = None
    if count > 1 and math.isfinite(found):
        # Of a ratio of two sums over windows, then through exp (delta method).
        squares = sum((x - mean * n) ** 2 for x, n in sums)
        stderr = found * math.sqrt(count / (count - 1) * squares) / tokens
    return Score(found, stderr, count, tokens, tuple(x / n for x, n in sums))


def of_word(perplexity: float, tokens: float) -> float:
    """The perplexity of a word of so many tokens, which two tokenizers have in common."""
    try:
        return float(perplexity**tokens)
    except OverflowError:
        return math.inf


def ratio(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> tuple[float, float] | None:
    """How many times as large the perplexity of one model is as another's, and the standard error.

    From the difference on each window, so that how hard a window is does not count.

    Args:
        one: losses of windows of one length, see :class:`Score`; of one model or of several draws
            of it, whose mean is taken.
        other: those of the other model on the same windows.

    Returns:
        None where windows are missing, fewer than two, or a loss is not finite.
    """
    means = [
        [statistics.fmean(draws) for draws in zip(*each, strict=True)] for each in (one, other)
    ]
    if len(means[0]) != len(means[1]) or len(means[0]) < 2:
        return None
    differences = [a - b for a, b in zip(*means, strict=True)]
    if not all(map(math.isfinite, differences)):
        return None
    found = math.exp(statistics.fmean(differences))
    return found, found * statistics.stdev(differences) / math.sqrt(len(differences))
