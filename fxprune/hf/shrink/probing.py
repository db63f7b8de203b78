"""Which entries of a config count units: those whose change changes the units' tensors."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.hf.shrink import fields
from fxprune.hf.shrink.fields import Change, Edits
from fxprune.hf.shrink.fill import named_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    Make = Callable[[PreTrainedConfig, list[str]], nn.Module | None]
    Wanted = Callable[[str], torch.Tensor | None]

_NUMBER = re.compile(r"\.\d+(?=\.)")
_MOST = 8  # entries that are combined in every way
_TRIES = 200  # entries can be combined in many ways


def ways(
    make: Make,
    wanted: Wanted,
    config: PreTrainedConfig,
    changed: Sequence[Change],
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[tuple[Edits, dict[str, tuple[str, ...]]]]:
    """New values of entries that may express some changes, the more plausible ones first.

    Args:
        make: makes the model of a config, or a layer of it; appends to a list why there is none.
        wanted: gives the tensor that is to be put in place of one of those.
        config: without changes.
        changed: the changes.
        known: names of entries that have served before, by what the units are called.

    Yields:
        The new values, and the names of the entries by what the units are called, where names have
        led to them. What comes after those takes a model for each entry.
    """
    yield from itertools.islice(fields.choices(config, changed, known), _TRIES)
    named = [change for change in changed if change.named]
    others = [change for change in changed if not change.named]
    if named and others:

        def wrong(edits: Edits) -> float:
            made = make(fields.edited(config, edits), [])
            return math.inf if made is None else _misfits(made, wanted)

        # What is called by no name is settled first, as far as it goes alone.
        found = combined(probed(make, wanted, config, others), others)
        best = min(itertools.islice(found, _TRIES), key=wrong, default={})
        for edits, names in itertools.islice(fields.choices(config, named), _TRIES):
            yield best | edits, names
    elif changed:
        found = combined(probed(make, wanted, config, changed), changed)
        yield from ((edits, {}) for edits in itertools.islice(found, _TRIES))


def probed(
    make: Make, wanted: Wanted, config: PreTrainedConfig, changed: Sequence[Change]
) -> dict[str, Any]:
    """The entries that may count the units of some changes, whatever they are called.

    Every entry that is a number is changed by itself, as the units are, and the model is built on
    ``meta``. An entry may count them if that changes axes of tensors that the plan changes, in
    whatever layer, and no others. One with which no model can be built may do so along with others.

    Args:
        make: makes the model of a config, or a layer of it; appends to a list why there is none.
        wanted: gives the tensor that is to be put in place of one of those.
        config: without changes.
        changed: the changes.

    Returns:
        The entries with their values, those that make models first; empty where the config itself
        makes none.
    """
    base = make(config, [])
    if base is None:
        return {}
    there = {name: tensor.shape for name, tensor in named_tensors(base).items()}
    goal = _axes(there, {name: wanted(name) for name in there})
    sure, perhaps = {}, {}
    for change in fields.distinct(changed):
        for name, value in fields.entries(config, change.part).items():
            new = change.scaled(value)
            if new is None or name in sure or name in perhaps:
                continue
            errors: list[str] = []
            made = make(fields.edited(config, {name: new}), errors)
            if made is None:
                if errors and not fields.counts_other(name):
                    perhaps[name] = value
                continue
            moved = _axes(there, named_tensors(made))
            if moved and moved <= goal:
                sure[name] = value
    return sure | perhaps


def combined(entries: Mapping[str, Any], changed: Sequence[Change]) -> Iterator[Edits]:
    """New values of some entries, for changes of which each may count several.

    An entry changes as all of the groups do that it is a multiple of, or as one that has its size.

    Args:
        entries: names and values, see :func:`probed`.
        changed: the changes.
    """
    alike = list({(_anywhere(c.group), c.size, c.kept): c for c in changed}.values())
    options = {name: _values(name, value, alike) for name, value in entries.items()}
    names = [name for name, values in options.items() if values][:_MOST]
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            for values in itertools.product(*(options[name] for name in chosen)):
                yield dict(zip(chosen, values, strict=True))


def _values(name: str, value: Any, changed: Sequence[Change]) -> list[Any]:
    mine = [change for change in changed if fields.part_of_name(name) == change.part]
    together = value
    for change in mine:
        new = change.scaled(together)
        together = together if new is None else new
    if isinstance(value, int) and together == int(together):
        together = int(together)
    found = [change.kept for change in mine if change.size == value]
    if together not in found:
        found.append(together)
    return [new for new in found if new != value]


def _misfits(made: nn.Module, wanted: Wanted) -> int:
    pairs = ((wanted(name), blank) for name, blank in named_tensors(made).items())
    return sum(tensor is None or tensor.shape != blank.shape for tensor, blank in pairs)


def _axes(
    before: Mapping[str, torch.Size], after: Mapping[str, torch.Tensor | None]
) -> set[tuple[str, int]]:
    """The axes of tensors that have another length, or are gone, without numbers of layers."""
    found = set()
    for name, shape in before.items():
        tensor = after.get(name)
        sizes = () if tensor is None else tensor.shape
        for axis, size in enumerate(shape):
            if len(sizes) != len(shape) or sizes[axis] != size:
                found.add((_anywhere(name), axis))
    return found


def _anywhere(name: str) -> str:
    """A name in whatever layer."""
    return _NUMBER.sub(".N", name)
