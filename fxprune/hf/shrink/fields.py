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
from fxprune.hf.shrink.parts import Part, inside, part_of
from fxprune.hf.shrink.stacks import Stack
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Edits = dict[str, int]

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
}


# Entries that count what is no unit of a group.
_OTHER = re.compile(
    r"vocab|token|layer|position|_id$|^max_|label|window|per_tok|top_?k|hidden_size|embd|embed|head"
    r"|d_model"
)
# How many layers there are, and which of them are of another sort.
_COUNTS = re.compile(r"layer|n_block|num_block|^depth$")
_LISTS = re.compile(r"layer|block|index|indices")
_FIRST = re.compile(r"^first_|_first_|dense_replace|num_dense_layers")


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
    """

    group: str
    units: str
    size: int
    kept: int
    layer: tuple[str, int] | None
    part: Part = ()

    def of(self, value: int) -> int | None:
        """What becomes of a number that counts the units, or so many for each; None if none."""
        return value // self.size * self.kept if value > 0 and value % self.size == 0 else None


def changes(plan: Plan, model: PreTrainedModel) -> list[Change]:
    """The groups that lose units in a plan for a model."""
    found = []
    for name, units in plan.kept.items():
        place, _, word = name.rpartition(":")
        word = word.partition("#")[0]  # the second of its name
        layer, part = layer_of(place), part_of(model, place)
        found.append(Change(name, word, plan.sizes[name], len(units), layer, part))
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
    for part in dict.fromkeys(change.part for change in changed):
        values |= entries(config, part)
    distinct = list({(c.units, c.size, c.kept, c.part): c for c in changed}.values())
    options = [list(_names(values, change, (known or {}).get(change.units))) for change in distinct]
    if len(options) > 1:
        # The units of shared experts may follow from those of the others.
        options = [[*names, ()] for names in options]
    for names in itertools.product(*options):
        if distinct and not any(names):
            continue
        edits = _applied(values, zip(distinct, names, strict=True))
        if edits is None:
            continue
        chosen = {c.units: picked for c, picked in zip(distinct, names, strict=True)}
        yield edits, chosen
        # Many configs leave the size of a head to be computed from what changes.
        sizes = {
            ".".join((*c.part, "head_dim")): head_size(inside(config, c.part))
            for c in distinct
            if c.units in ("heads", "queries", "channels")
        }
        sizes = {name: size for name, size in sizes.items() if values.get(name) is None}
        if sizes:
            yield edits | sizes, chosen


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
    pattern = re.compile(_ENTRIES.get(change.units, "$^"))
    found = [
        name
        for name, value in values.items()
        if _part(name) == change.part
        and pattern.search(_last(name))
        and "layer" not in _last(name)
        and (value is None or (type(value) is int and change.of(value) is not None))
        # How many groups of experts there are does not say how many there are in a group.
        and (not _last(name).endswith("n_group") or value == change.size)
    ]
    counts = [name for name in found if values[name] is not None]
    # What is called something else and has the very number may count them as well.
    others = [
        name
        for name, value in values.items()
        if name not in found
        and _part(name) == change.part
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


def shorter(
    config: PreTrainedConfig, stacks: Sequence[Stack], parts: Sequence[Part]
) -> Iterator[PreTrainedConfig]:
    """Configs with fewer layers: every choice of one entry per list that has its length.

    Args:
        config: the config.
        stacks: the lists.
        parts: of the config that speak of them, one each.
    """
    options = []
    for stack, part in zip(stacks, parts, strict=True):
        names = [
            name
            for name, value in entries(config, part).items()
            if value == stack.size and type(value) is int and _COUNTS.search(_last(name))
        ]
        names.sort(
            key=lambda name, path=stack.path: (  # type: ignore[misc]
                ("decoder" in _last(name)) != ("decoder" in path),
                _last(name) != "num_hidden_layers",
            )
        )
        options.append(names)
    for chosen in itertools.product(*options):
        if len(set(chosen)) < len(chosen):
            continue
        edits: dict[str, Any] = {}
        for name, stack, part in zip(chosen, stacks, parts, strict=True):
            for other, value in entries(config, part).items():
                if (new := _renumbered(other, value, stack)) != value:
                    edits[other] = new
            edits[name] = len(stack.kept)
        yield edited(config, edits)


def _renumbered(name: str, value: Any, stack: Stack) -> Any:
    """What becomes of an entry that may speak of single layers: itself if it does not."""
    kept = list(stack.kept)
    if isinstance(value, list) and _LISTS.search(_last(name)):
        if len(value) == stack.size:
            return [value[i] for i in kept]
        if value and all(type(i) is int and 0 <= i < stack.size for i in value):
            return [kept.index(i) for i in value if i in kept]  # the numbers of some layers
    if type(value) is int and 0 < value <= stack.size and _FIRST.search(_last(name)):
        return sum(i < value for i in kept)  # so many at the start are of another sort
    return value


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _part(name: str) -> Part:
    return tuple(name.split(".")[:-1])
