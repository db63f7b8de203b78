"""Slow recomputations with hooks and deleted layers, without the library."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import fxprune
from tests.llama import tiny_llama
from tests.zoo import disturb

Batch = dict[str, Any]
LAYERS = 4


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 90, (rows, length), generator=generator)


def padding(rows: int, length: int, side: str) -> Tensor:
    """A mask that hides 0, 1, 2, ... tokens on one side of the rows."""
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        mask[row, slice(0, row) if side == "left" else slice(length - row, length)] = 0
    return mask


def disturbed_llama(layers: int = LAYERS) -> nn.Module:
    model = tiny_llama(num_hidden_layers=layers, use_cache=False)
    disturb(model)
    return model


@functools.cache
def llama() -> nn.Module:
    """Four layers. Do not change it."""
    return disturbed_llama()


@functools.cache
def traced_llama() -> fxprune.Traced:
    """Traced with an attention mask."""
    ids = tokens(2, 11)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return fxprune.trace(llama(), kwargs=inputs)


def without(model: nn.Module, path: str, *numbers: int) -> nn.Module:
    """A copy whose list of layers at a path lacks some."""
    short = copy.deepcopy(model)
    layers = short.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    for number in sorted(numbers, reverse=True):
        del layers[number]
    return short


def zeroed(model: nn.Module, path: str) -> nn.Module:
    """A copy in which the last projection of a branch gives zeros."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.get_submodule(path).parameters():
            parameter.zero_()
    return changed


@contextmanager
def off(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The model with one module giving what it is given."""

    def skip(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        return (before, *output[1:]) if isinstance(output, tuple) else before

    handle = model.get_submodule(path).register_forward_hook(skip, with_kwargs=True)
    try:
        yield model
    finally:
        handle.remove()


@torch.no_grad()
def perplexity(model: nn.Module, data: Sequence[Batch], shifted: bool = True) -> float:
    """``exp`` of the mean negative log-likelihood over all labels of all batches."""
    total, count = 0.0, 0
    for batch in data:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        output = model(**inputs)
        logits = (output if isinstance(output, Tensor) else output.logits).double()
        labels = batch.get("labels")
        if labels is None:
            labels = batch["input_ids"].clone()
            if "attention_mask" in batch:
                labels[batch["attention_mask"] == 0] = -100
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        chances = logits.log_softmax(-1).reshape(-1, logits.shape[-1])
        for chance, label in zip(chances, labels.reshape(-1).tolist(), strict=True):
            if label != -100:
                total -= float(chance[label])
                count += 1
    return math.exp(total / count)


@torch.no_grad()
def stream(model: nn.Module, batch: Batch, path: str) -> tuple[Tensor, Tensor]:
    """What enters and what leaves a module, in float64."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        behind = output[0] if isinstance(output, tuple) else output
        seen.append((before.double(), behind.double()))

    handle = model.get_submodule(path).register_forward_hook(watch, with_kwargs=True)
    model(**{name: value for name, value in batch.items() if name != "labels"})
    handle.remove()
    (only,) = seen
    return only


def cosine(one: Tensor, two: Tensor) -> float:
    return float(one @ two / (one.norm() * two.norm()))


def influence(pairs: Sequence[tuple[Tensor, Tensor]], masks: Sequence[Tensor | None]) -> float:
    """Block influence of (rows, tokens, features) before and behind, token by token."""
    found = []
    for (before, behind), mask in zip(pairs, masks, strict=True):
        for row in range(before.shape[0]):
            for token in range(before.shape[1]):
                if mask is None or mask[row, token]:
                    found.append(1 - cosine(before[row, token], behind[row, token]))
    return sum(found) / len(found)


def angle(pairs: Sequence[tuple[Tensor, Tensor]], masks: Sequence[Tensor | None]) -> float:
    """Angular distance at the last token of every row that is not padding."""
    found = []
    for (before, behind), mask in zip(pairs, masks, strict=True):
        for row in range(before.shape[0]):
            hidden = mask is not None and not mask[row].any()
            if not hidden:
                last = -1 if mask is None else int(mask[row].nonzero().max())
                found.append(math.acos(cosine(before[row, last], behind[row, last])) / math.pi)
    return sum(found) / len(found)
