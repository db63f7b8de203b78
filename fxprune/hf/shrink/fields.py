"""Which entries of a transformers config stand for what a plan changes.

Nothing is known of any class: entries are candidates by their value and their name, and whoever
asks builds the model and looks whether it has the shapes.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxprune.groups.kinds import layer_of
from fxprune.hf.shrink import parts
from fxprune.hf.shrink.parts import Part, inside, part_of
from fxprune.hf.shrink.token_ids import Numbers
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Edits = dict[str, Any]

# What the units of a group are called in its name, and what a config calls them.
_ENTRIES = {
    "units": r"intermediate|inner|ffn|d_ff|mlp|hidden_dim",
    "heads": r"head(?!_dim|_size)",
    "queries": r"head(?!_dim|_size)",
    "channels": r"hidden_size|embd|embed|d_model|hidden_dim|width",
    "experts": r"^(?!.*(?:size|dim|per_tok|shared|layer)).*expert|n_group",
    "head_dim": r"head_dim|head_size|d_kv|kv_channels",
    "qk_dim": r"head_dim|head_size|d_kv|kv_channels",
    "v_dim": r"head_dim|head_size|d_kv|kv_channels",
    "tokens": r"vocab",
}


# Entries that count what is no unit of a group.
_OTHER = re.compile(
    r"vocab|token|layer|position|_id$|^max_|label|window|per_tok|top_?k|hidden_size|embd|embed|head"
    r"|d_model"
)
_NEVER = re.compile(r"vocab|token|layer|position|_id$|^max_|label|hidden_size|d_model|n_embd")
_LARGEST_FACTOR = 16


@dataclass(frozen=True)
class Change:
    """A group that loses units.

    Attributes:
        group: its name.
        units: what its units are called, the end of the name without a number.
        size: how many there were.
        kept: how many stay.
        layer: list and number of the layer that it lies in, None for several.
        part: of the config that speaks of it.
        more: parts nested in that one that no module holds, which may speak of it as well.
        numbers: of tokens, their new numbers.
    """

    group: str
    units: str
    size: int
    kept: int
    layer: tuple[str, int] | None
    part: Part = ()
    more: tuple[Part, ...] = ()
    numbers: Numbers | None = field(default=None, compare=False)

    @property
    def named(self) -> bool:
        """Whether configs have usual names for what counts such units."""
        return self.units in _ENTRIES

    def concerns(self, path: str) -> bool:
        """Whether a module holds the units or is a part of what does; of a stream any may be."""
        place = self.group.rpartition(":")[0]
        inner, outer = sorted((f"{place}.", f"{path}."), key=len, reverse=True)
        return self.layer is None or not path or inner.startswith(outer)

    def of(self, value: Any) -> Any:
        """What becomes of a number that counts the units, or so many for each; None if none.

        Of a list, one for each layer, every number is taken likewise.
        """
        if isinstance(value, list):
            new = [self.of(number) for number in value]
            return new if new and None not in new else None
        counts = type(value) is int and value > 0 and value % self.size == 0
        return value // self.size * self.kept if counts else None

    def scaled(self, value: Any) -> Any:
        """Likewise; a small number may be a factor, such as that of the hidden size."""
        if (new := self.of(value)) is not None:
            return new
        if type(value) in (int, float) and 0 < value <= _LARGEST_FACTOR:
            return value * self.kept / self.size
        return None


def changes(plan: Plan, model: PreTrainedModel) -> list[Change]:
    """The groups that lose units in a plan for a model."""
    found = []
    unheld = functools.cache(functools.partial(parts.unheld, model))
    for name, units in plan.kept.items():
        place, _, word = name.rpartition(":")
        word = word.partition("#")[0]  # the second of its name
        layer, part = layer_of(place), part_of(model, place)
        size = plan.sizes[name]
        numbers = Numbers(units, size) if word == "tokens" else None
        found.append(Change(name, word, size, len(units), layer, part, unheld(part), numbers))
    return found


def entries(config: PreTrainedConfig, part: Part) -> dict[str, Any]:
    """The entries of a part of a config, by names that lead there from the whole."""
    own = inside(config, part)
    names = [name for name in own.to_dict() if hasattr(own, name)]
    return {".".join((*part, name)): getattr(own, name) for name in names}


def edited(config: PreTrainedConfig, edits: Mapping[str, Any]) -> PreTrainedConfig:
    """A copy with other values, which no validator of the config sees."""
    changed = copy.deepcopy(config)
    for path, value in edits.items():
        *part, name = path.split(".")
        target = inside(changed, tuple(part))
        target.__dict__[target.attribute_map.get(name, name)] = value
    return changed


def choices(
    config: PreTrainedConfig,
    changed: Sequence[Change],
    known: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[tuple[Edits, dict[str, tuple[str, ...]]]]:
    """New values of entries that may express some changes, the more plausible ones first.

    Args:
        config: the config, of a model whose layers are alike.
        changed: the changes; those of equal numbers in many layers of a list are one.
        known: names of entries that have served before, by what the units are called.

    Yields:
        The new values, and the names of the entries by what the units are called.
    """
    values: dict[str, Any] = {}
    for part in dict.fromkeys(part for c in changed for part in (c.part, *c.more)):
        values |= entries(config, part)
    alike = distinct(changed)
    options = [list(_names(values, change, (known or {}).get(change.units))) for change in alike]
    if len(options) > 1:
        # The units of shared experts may follow from those of the others.
        options = [[*names, ()] for names in options]
    for names in itertools.product(*options):
        if alike and not any(names):
            continue
        edits = _applied(values, zip(alike, names, strict=True))
        if edits is None:
            continue
        chosen = {c.units: picked for c, picked in zip(alike, names, strict=True)}
        yield edits, chosen
        # Many configs leave the size of a head to be computed from what changes.
        sizes = {
            ".".join((*c.part, "head_dim")): head_size(inside(config, c.part))
            for c in alike
            if c.units in ("heads", "queries", "channels")
        }
        sizes = {name: size for name, size in sizes.items() if values.get(name) is None}
        if sizes:
            yield edits | sizes, chosen


def counts_other(name: str) -> bool:
    """Whether an entry is called after something that is no unit of a group."""
    return bool(_NEVER.search(_last(name)))


def distinct(changed: Iterable[Change]) -> list[Change]:
    """The changes, those of equal numbers in many layers as one."""
    return list({(c.units, c.size, c.kept, c.part): c for c in changed}.values())


def apart(
    config: PreTrainedConfig, overrides: Mapping[Part, Mapping[int, dict[str, Any]]]
) -> PreTrainedConfig:
    """A copy with entries for single layers, such that it can be written and read again.

    Args:
        config: without such entries.
        overrides: of each part that gets some, entries by the numbers of its layers.
    """
    made = copy.deepcopy(config)
    for part, entries_of in overrides.items():
        inside(made, part).per_layer_config = {n: dict(own) for n, own in entries_of.items()}
    try:
        type(made).from_dict(made.to_dict())
    except Exception:  # validators of an architecture that read what differs from layer to layer
        for part in overrides:
            inside(made, part).allow_global_per_layer_attribute_access = True
    return made


def head_size(config: PreTrainedConfig) -> int:
    """Numbers in a head, where a (part of a) config leaves that to be computed."""
    size, heads = (getattr(config, name, 0) for name in ("hidden_size", "num_attention_heads"))
    return int(size) // max(1, int(heads))


def _names(
    values: Mapping[str, Any], change: Change, known: tuple[str, ...] | None
) -> Iterator[tuple[str, ...]]:
    """Sets of entries that may all count the units of a change."""
    pattern, own = re.compile(_ENTRIES.get(change.units, "$^")), (change.part, *change.more)
    found = [
        name
        for name, value in values.items()
        if part_of_name(name) in own
        and pattern.search(_last(name))
        and ("layer" not in _last(name) or isinstance(value, list))
        and (value is None or change.of(value) is not None)
        # How many groups of experts there are does not say how many there are in a group.
        and (not _last(name).endswith("n_group") or value == change.size)
    ]
    counts = [name for name in found if values[name] is not None]
    # What is called something else and has the very number may count them as well.
    others = [
        name
        for name, value in values.items()
        if name not in found
        and part_of_name(name) in own
        and type(value) is int
        and value == change.size
        and not _OTHER.search(_last(name))
    ]
    # An entry that is None stands for a default, such as four times the hidden size.
    sets: Iterable[tuple[str, ...]] = itertools.chain(
        itertools.chain.from_iterable(
            itertools.combinations(counts, n) for n in range(len(counts), 0, -1)
        ),
        ((name,) for name in found if values[name] is None),
        ((name,) for name in others),
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


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def part_of_name(name: str) -> Part:
    """The part of a config that an entry lies in."""
    return tuple(name.split(".")[:-1])
