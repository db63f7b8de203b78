"""Which entries of a transformers config stand for what a plan changes.

Nothing is known of any class: entries are candidates by their value and their name, and whoever
asks builds the model and looks whether it has the shapes.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxprune.groups.kinds import layer_of
from fxprune.hf.stacks import Stack
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Edits = dict[str, int]

# What the units of a group are called in its name, and what a config calls them.
_ENTRIES = {
    "units": r"intermediate|inner|ffn|d_ff|mlp|hidden_dim",
    "heads": r"head(?!_dim|_size)",
    "queries": r"head(?!_dim|_size)",
    "channels": r"hidden_size|embd|embed|d_model|hidden_dim|width",
    "experts": r"expert",
    "head_dim": r"head_dim|head_size|d_kv|kv_channels",
    "qk_dim": r"head_dim|head_size|d_kv|kv_channels",
    "v_dim": r"head_dim|head_size|d_kv|kv_channels",
}


@dataclass(frozen=True)
class Change:
    """A group that loses units.

    Attributes:
        group: its name.
        units: what its units are called, the end of the name.
        size: how many there were.
        kept: how many stay.
        layer: list and number of the layer that it lies in, None for several.
    """

    group: str
    units: str
    size: int
    kept: int
    layer: tuple[str, int] | None

    def of(self, value: int) -> int | None:
        """What becomes of a number that counts the units, or so many for each; None if none."""
        return value // self.size * self.kept if value > 0 and value % self.size == 0 else None


def changes(plan: Plan) -> list[Change]:
    """The groups that lose units in a plan."""
    found = []
    for name, units in plan.kept.items():
        place, _, word = name.rpartition(":")
        found.append(Change(name, word, plan.sizes[name], len(units), layer_of(place)))
    return found


def entries(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of the part of a config that describes the language model."""
    text = config.get_text_config()
    return {name: getattr(text, name) for name in text.to_dict() if hasattr(text, name)}


def edited(config: PreTrainedConfig, edits: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy with other values, which no validator of the config sees."""
    changed = copy.deepcopy(config)
    target = changed.get_text_config()
    for name, value in edits.items():
        target.__dict__[target.attribute_map.get(name, name)] = value
    return changed


def choices(
    config: PreTrainedConfig,
    changed: Sequence[Change],
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[tuple[Edits, dict[str, tuple[str, ...]]]]:
    """New values of entries that may express some changes, the more plausible ones first.

    Args:
        config: the config.
        changed: the changes; those of equal numbers in many layers are one.
        known: names of entries that have served before, by what the units are called.

    Yields:
        The new values, and the names of the entries by what the units are called.
    """
    values = entries(config)
    distinct = list({(c.units, c.size, c.kept): c for c in changed}.values())
    options = [list(_names(values, change, (known or {}).get(change.units))) for change in distinct]
    for names in itertools.product(*options):
        edits = _applied(values, zip(distinct, names, strict=True))
        if edits is None:
            continue
        chosen = {c.units: picked for c, picked in zip(distinct, names, strict=True)}
        yield edits, chosen
        # Many configs leave the size of a head to be computed from what changes.
        if values.get("head_dim") is None and {"heads", "queries", "channels"} & chosen.keys():
            yield edits | {"head_dim": head_size(config)}, chosen


def apart(config: PreTrainedConfig, overrides: Mapping[int | str, dict[str, Any]]) -> Any:
    """A copy with entries for single layers, such that it can be written and read again."""
    made = copy.deepcopy(config)
    made.per_layer_config = dict(overrides)
    try:
        type(made).from_dict(made.to_dict())
    except Exception:  # validators of an architecture that read what differs from layer to layer
        made.allow_global_per_layer_attribute_access = True
    return made


def head_size(config: PreTrainedConfig) -> int:
    """Numbers in a head, where a config leaves that to be computed."""
    text = config.get_text_config()
    size, heads = (getattr(text, name, 0) for name in ("hidden_size", "num_attention_heads"))
    return int(size) // max(1, int(heads))


def _names(
    values: Mapping[str, Any], change: Change, known: tuple[str, ...] | None
) -> Iterator[tuple[str, ...]]:
    """Sets of entries that may all count the units of a change."""
    pattern = re.compile(_ENTRIES.get(change.units, "$^"))
    found = [
        name
        for name, value in values.items()
        if pattern.search(name)
        and "layer" not in name
        and (value is None or (type(value) is int and change.of(value) is not None))
    ]
    counts = [name for name in found if values[name] is not None]
    # An entry that is None stands for a default, such as four times the hidden size.
    sets: Iterable[tuple[str, ...]] = itertools.chain(
        itertools.chain.from_iterable(
            itertools.combinations(counts, n) for n in range(len(counts), 0, -1)
        ),
        ((name,) for name in found if values[name] is None),
    )
    if known is not None:
        yield known
    yield from (names for names in sets if names != known)


def _applied(
    values: Mapping[str, Any], picked: Iterable[tuple[Change, tuple[str, ...]]]
) -> Edits | None:
    edits: Edits = {}
    for change, names in picked:
        for name in names:
            value = edits.get(name, values.get(name))
            new = change.kept if value is None else change.of(value)
            if new is None:
                return None
            edits[name] = new
    return edits


def shorter(config: PreTrainedConfig, stacks: Sequence[Stack]) -> Iterator[PreTrainedConfig]:
    """Configs with fewer layers: every choice of one entry per list that has its length."""
    values = entries(config)
    numbers = {
        name: value
        for name, value in values.items()
        if type(value) is int and "layer" in name.replace("n_block", "layer")
    }
    options = [
        sorted(
            (name for name, value in numbers.items() if value == stack.size),
            key=lambda name, path=stack.path: (  # type: ignore[misc]
                ("decoder" in name) != ("decoder" in path),
                name != "num_hidden_layers",
            ),
        )
        for stack in stacks
    ]
    for names in itertools.product(*options):
        if len(set(names)) < len(names):
            continue
        edits: dict[str, Any] = {}
        for name, stack in zip(names, stacks, strict=True):
            for other, value in values.items():
                if isinstance(value, list) and len(value) == stack.size and "layer" in other:
                    edits[other] = [value[i] for i in stack.kept]
            edits[name] = len(stack.kept)
        yield edited(config, edits)
