"""Which config has fewer layers: entries that speak of single layers, found by trying."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxprune.hf.shrink.fields import edited, entries
from fxprune.hf.shrink.parts import Part
from fxprune.hf.shrink.stacks import Stack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Edits = dict[str, Any]

_TRIES = 100
_FIRST = re.compile(r"^first_|_first_|dense_replace|num_dense_layers")
_COUNT = re.compile(r"layer|n_block|num_block|^depth$")
_LISTS = re.compile(r"layer|block|index|indices")


def shorter(
    config: PreTrainedConfig,
    stacks: Sequence[Stack],
    parts: Sequence[Part],
    wrong: Callable[[PreTrainedConfig], float],
) -> Iterator[PreTrainedConfig]:
    """Configs with fewer layers, the best first.

    The number of layers is an entry that has their number, or several, or none where it is counted
    from a list. What else speaks of single layers is taken as its name and value suggest, and where
    a layer then is not what it was, in other ways, one entry after the other.

    Args:
        config: the config.
        stacks: the lists.
        parts: of the config that speak of them, one each.
        wrong: how much is wrong with the layers of such a config; infinite if it has other numbers
            of layers.
    """
    found: list[tuple[float, Edits]] = []
    for edits in _starts(config, stacks, parts):
        found.append((wrong(edited(config, edits)), edits))
        if found[-1][0] == 0:
            yield edited(config, edits)
    count, edits = min(found, key=lambda each: each[0])
    if count:
        better = _improved(config, stacks, parts, wrong, count, edits)
        if better is not edits:
            yield edited(config, better)
    yield from (edited(config, edits) for count, edits in found if count)


def _starts(
    config: PreTrainedConfig, stacks: Sequence[Stack], parts: Sequence[Part]
) -> Iterator[Edits]:
    """New numbers of layers, and what else is likely to change."""
    base: Edits = {}
    for stack, part in zip(stacks, parts, strict=True):
        for name, value in entries(config, part).items():
            for new in itertools.islice(_readings(_last(name), value, stack), 1):
                base[name] = new
    options = [
        list(_counts(entries(config, part), stack))
        for stack, part in zip(stacks, parts, strict=True)
    ]
    for chosen in itertools.product(*options):
        names = list(itertools.chain.from_iterable(chosen))
        if len(set(names)) == len(names):
            counts = {
                name: len(stack.kept)
                for stack, own in zip(stacks, chosen, strict=True)
                for name in own
            }
            yield base | counts


def _counts(values: Mapping[str, Any], stack: Stack) -> Iterator[tuple[str, ...]]:
    """Sets of entries that may say how many layers a list has, the more plausible ones first."""
    names = [
        name
        for name, value in values.items()
        if value == stack.size and type(value) is int and _COUNT.search(_last(name))
    ]
    names.sort(
        key=lambda name: (
            ("decoder" in _last(name)) != ("decoder" in stack.path),
            _last(name) != "num_hidden_layers",
        )
    )
    standard = tuple(name for name in names if _last(name) == "num_hidden_layers")
    others = [name for name in names if name not in standard]
    # What says the same as the standard entry goes with it.
    sets = [standard, *((*standard, name) for name in others), *((name,) for name in others)]
    yield from dict.fromkeys(filter(None, [*sets, tuple(names)]))
    yield ()


def _improved(
    config: PreTrainedConfig,
    stacks: Sequence[Stack],
    parts: Sequence[Part],
    wrong: Callable[[PreTrainedConfig], float],
    count: float,
    edits: Edits,
) -> Edits:
    """The edits with entries read in other ways, as long as less is wrong then."""
    tried = 0
    for again in range(2):  # what one entry mends may hang on another
        for stack, part in zip(stacks, parts, strict=True):
            for change in _changes(entries(config, part), stack):
                if tried == _TRIES or (again and not edits.keys() & change.keys()):
                    continue
                if all(edits.get(name, ...) == value for name, value in change.items()):
                    continue
                tried += 1
                now = wrong(edited(config, edits | change))
                if now < count:
                    count, edits = now, edits | change
                if count == 0:
                    return edits
    return edits


def _changes(values: Mapping[str, Any], stack: Stack) -> Iterator[Edits]:
    """Other readings of entries; of a period and an offset together."""
    for name, value in values.items():
        for new in _readings(_last(name), value, stack, every=True):
            yield {name: new}
        yield {name: value}
    for name, period in values.items():
        offset = name.replace("period", "offset")
        if offset != name and type(period) is int and type(values.get(offset)) is int:
            for pair in _periods(period, values[offset], stack):
                yield dict(zip((name, offset), pair, strict=True))


def _readings(name: str, value: Any, stack: Stack, every: bool = False) -> Iterator[Any]:
    """What may become of an entry that speaks of single layers; nothing if it does not.

    Args:
        name: of the entry.
        value: of the entry.
        stack: the list of layers.
        every: also what the name says nothing of.
    """
    kept = list(stack.kept)
    if isinstance(value, list | tuple) and (every or _LISTS.search(name)):
        kind = type(value)
        numbers = all(type(i) is int and 0 <= i < stack.size for i in value) and bool(value)
        # All layers by their numbers, or something else of each.
        listed = numbers and list(value) == sorted(set(value)) and len(value) > 1
        ways = []
        if len(value) == stack.size:
            ways.append(kind(value[i] for i in kept))
        if numbers and (listed or len(value) != stack.size):
            ways.insert(0, kind(kept.index(i) for i in value if i in kept))
        yield from ways
    if isinstance(value, str) and len(value) == stack.size and "pattern" in name:
        yield "".join(value[i] for i in kept)  # a letter for each layer
    if isinstance(value, list | tuple) and every and 0 < len(value) < stack.size:
        again = list(value) * stack.size  # it repeats
        yield type(value)(again[i] for i in kept)
    if type(value) is float and every:
        for share in (math.sqrt(len(kept) / stack.size), len(kept) / stack.size):
            yield value * share  # of a number, or of a variance, that the layers have in common
    if (spread := _spread(value)) and len(spread) == stack.size:
        yield [[[spread[i] for i in kept], 1]]
    if type(value) is int and 0 < value <= stack.size and _FIRST.search(name):
        yield sum(i < value for i in kept)  # so many at the start are of another sort


def _spread(value: Any) -> list[Any]:
    """``[[[a, b], 2]]`` as ``[a, b, a, b]``; nothing of any other value."""
    if not isinstance(value, list):
        return []
    pairs = [x for x in value if isinstance(x, list | tuple) and len(x) == 2]
    if len(pairs) < len(value) or not all(isinstance(x, list) and type(n) is int for x, n in pairs):
        return []
    return list(itertools.chain.from_iterable(list(x) * n for x, n in pairs))


def _periods(period: int, offset: int, stack: Stack) -> Iterator[tuple[int, int]]:
    """Periods and offsets that fall on the layers that they fell on."""
    if period < 1:
        return
    fell = _falls(stack.kept, period, offset)
    for length in range(1, len(stack.kept) + 2):
        for start in range(length):
            if _falls(range(len(stack.kept)), length, start) == fell:
                yield length, start


def _falls(numbers: Iterable[int], period: int, offset: int) -> list[bool]:
    return [i % period == offset for i in numbers]


def _last(name: str) -> str:
    return name.rpartition(".")[2]
