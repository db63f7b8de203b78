"""Options of a selection that can be checked, and put into one form, before there is a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any

from fxprune.errors import SelectionError
from fxprune.groups.kinds import KINDS
from fxprune.select.budget import fraction, percentage

# What means nothing where only blocks and branches go.
_OF_UNITS = (
    "kinds", "groups", "ranking", "normalise", "cost_aware", "overrides", "multiple_of", "min_kept",
    "max_ratio", "keep_first", "keep_last", "steps", "search", "branches",
)  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)


def check_without_units(config: Any) -> None:
    """Refuse what says something about units of groups alone, where none go.

    Args:
        config: a :class:`fxprune.PruneConfig`.

    Raises:
        SelectionError: it says something.
    """
    also = ("criterion", "compensation") if config.depth is None else ()
    for each in fields(config):
        if each.name not in (*_OF_UNITS, *also) or (each.name == "kinds" and config.only_tokens):
            continue
        default = {} if each.default is MISSING else each.default
        if getattr(config, each.name) not in (default, None):
            raise SelectionError(
                f"{each.name}= is for units of groups, and only blocks, branches or tokens are to "
                "go: leave it out, or give pruning_ratio or budget too"
            )


def check_search(search: str, branches: Collection[str], steps: int) -> None:
    """Refuse what does not go with the way a plan is looked for.

    Raises:
        SelectionError: steps of what is measured once, or branches that are to go where nothing is
            measured.
    """
    if search != "predicted" and steps > 1:
        raise SelectionError(f"search={search!r} measures once: leave out steps=")
    if branches and search != "measured":
        raise SelectionError("branches= go where measured costs say so: give search='measured' too")


def check_in_pieces(config: Any, of_blocks: Any) -> None:
    """Refuse what cannot be done with only one piece's weights in memory.

    Args:
        config: a :class:`fxprune.PruneConfig`.
        of_blocks: what it scores blocks with.

    Raises:
        SelectionError: it is asked for; says what to take instead.
    """
    if not config.stream:
        raise SelectionError("max_memory= is for a model that runs in pieces: give stream=True too")
    if config.tokens:
        raise SelectionError("tokens go from a model in memory: leave out stream=, or vocabulary=")
    latency = config.budget is not None and config.budget.latency is not None
    for asked, name, instead in (
        (config.compensation == "blockwise", "compensation='blockwise'", "'least-squares'"),
        (config.search != "predicted", f"search={config.search!r}", "'predicted'"),
        (bool(config.branches), "branches=", "depth= with 'block-influence'"),
        (config.steps > 1, f"steps={config.steps}", "one step"),
        (latency, "budget of latency=", "macs= or params="),
        (bool(config.written_samples), "written_samples=", "text of a file"),
        (
            type(of_blocks).__name__ == "PPL",
            "depth_criterion='ppl' sweeps over all weights once for each block, which",
            "'block-influence' or 'angular-distance', one sweep for all",
        ),
    ):
        if asked:
            raise SelectionError(
                f"{name} needs the whole model in memory: leave out stream=, or take {instead}"
            )


def in_bytes(size: Any) -> int | None:
    """A number of bytes, of such as ``6GiB``, ``500MB`` or ``2**30``; None for None.

    Raises:
        SelectionError: it is none, or not above 0.
    """
    if size is None:
        return None
    found = _SIZE.fullmatch(str(size).strip())
    if found is None or not (number := float(found[1])):
        raise SelectionError(f"max_memory={size!r}: bytes, such as '6GiB'")
    unit = (found[2] or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(number * base ** ("KMGT".index(unit[0]) + 1 if unit else 0))


def check_multiple(multiple_of: int | Mapping[str, int]) -> None:
    """Refuse what the number of units that stay cannot be a multiple of.

    Raises:
        SelectionError: a number below 1, or a kind that there is not.
    """
    by_kind = multiple_of if isinstance(multiple_of, Mapping) else {"mlp": multiple_of}
    for kind, multiple in by_kind.items():
        if kind not in KINDS:
            raise SelectionError(f"multiple_of: unknown kind {kind!r}: take {', '.join(KINDS)}")
        if not isinstance(multiple, int) or multiple < 1:
            raise SelectionError(f"multiple_of={multiple}: a whole number, at least 1")


def check_least(min_kept: int | Mapping[str, int]) -> None:
    """Refuse what no number of units that stay can be.

    Raises:
        SelectionError: not a whole number, or below 1.
    """
    for number in min_kept.values() if isinstance(min_kept, Mapping) else (min_kept,):
        check_number("min_kept", 0 if number is None else number, 1)


def check_number(name: str, value: Any, least: int) -> None:
    """Refuse what is neither None nor a whole number that is large enough.

    Raises:
        SelectionError: it is not.
    """
    if value is not None and (type(value) is not int or value < least):
        raise SelectionError(f"{name}={value!r}: a whole number, at least {least}")


def at_most(max_ratio: Any) -> Any:
    """The largest share of units that may go, percentages as fractions; None for no limit.

    Raises:
        SelectionError: a share is outside [0, 1].
    """
    if isinstance(max_ratio, Mapping):
        return {key: at_most(share) for key, share in max_ratio.items()}
    if max_ratio is None or percentage(max_ratio) == 1:
        return None if max_ratio is None else 1.0
    return fraction("max_ratio", max_ratio)


def layer_ranges(layers: str | int | Iterable[int] | None) -> str | None:
    """Numbers of layers as text, such as ``4-20,25``; None for all layers.

    Raises:
        SelectionError: they are no numbers, or none.
    """
    if layers is None:
        return None
    numbers = layer_numbers(layers) if isinstance(layers, str | int) else sorted({*layers})
    if not numbers or any(type(n) is not int or n < 0 for n in numbers):
        raise SelectionError(f"layers={layers!r}: numbers of layers, such as '4-20,25'")
    edges = [n for n, m in pairwise([*numbers, -1]) if m != n + 1]
    found, first = [], numbers[0]
    for last in edges:
        found.append(str(first) if first == last else f"{first}-{last}")
        first = next((n for n in numbers if n > last), last)
    return ",".join(found)


def layer_numbers(layers: str | int) -> list[int]:
    """The numbers that such a text is about, ascending.

    Raises:
        SelectionError: it cannot be read.
    """
    found: set[int] = set()
    for part in str(layers).split(","):
        first, dash, last = part.strip().partition("-")
        ends = first, last if dash else first
        if not all(end.strip().isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise SelectionError(f"layers={layers!r}: numbers of layers, such as '4-20,25'")
        found.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(found)
