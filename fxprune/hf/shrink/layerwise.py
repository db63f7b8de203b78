"""A model whose layers have sizes of their own, each with a config of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.errors import ShrinkError
from fxprune.hf.open import architecture
from fxprune.hf.shrink import fields, layers_apart
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import misfit
from fxprune.hf.shrink.parts import Part, inside, lists_of, overrides, part_of, stacks_apart
from fxprune.hf.shrink.probing import ways

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from fxprune.hf.shrink.wanted import Wanted


@dataclass(frozen=True)
class Layerwise:
    """Finds the entries of a config for each layer.

    Attributes:
        whole: what is to be built.
    """

    whole: Wanted

    def build(self, configs: Sequence[PreTrainedConfig], errors: list[str]) -> PreTrainedModel:
        """A model whose layers have configs of their own."""
        stacks = self._parts(errors)
        rest = self.whole.rest()
        for config in configs:
            for edits, _ in fields.choices(config, rest):
                base = fields.edited(config, edits)
                small = self.whole.made(base, errors)
                if small is None:
                    continue
                found = {
                    path: self._overrides(base, small, path, part, edits)
                    for path, part in stacks.items()
                }
                wrong = misfit(small, self.whole.tensors, self.whole.names)
                if not wrong:
                    return self._settled(base, small, found, stacks)
                errors.append(wrong)
        if not self.whole.changed:
            raise self.whole.no_entry(errors)
        why = next(filter(None, errors), "no entry of the config")
        raise ShrinkError(f"{_what(rest or self.whole.changed)}: {why}")

    def _parts(self, errors: Sequence[str]) -> dict[str, Part]:
        """The lists with layers of their own sizes, and the part of the config for each.

        Args:
            errors: why no config for all layers will do.

        Raises:
            ShrinkError: entries for single layers cannot say which list they speak of.
        """
        paths = [*dict.fromkeys([*self.whole.by_list(), *stacks_apart(self.whole.model)])]
        found = {path: part_of(self.whole.model, path) for path in paths}
        for path, part in found.items():
            lists = lists_of(self.whole.model, part)
            if lists != [path]:
                if self.whole.alike(path):
                    why = next(filter(None, errors), "no entry of the config counts them")
                    raise ShrinkError(f"{_what(self.whole.of(path))}: {why}")
                several = f" ({', '.join(lists)})" if lists else ""
                name = type(self.whole.model).__name__
                raise ShrinkError(
                    f"{name} has {len(lists)} lists of layers{several} that "
                    f"{_named(self.whole.model, part)} describes, and sizes of each layer can be "
                    f"said of one: prune all layers of {path} alike (budget=Budget(units=...)), or "
                    "use fxprune.rewrite, which makes a graph"
                )
        return found

    def _overrides(
        self,
        base: PreTrainedConfig,
        small: PreTrainedModel,
        path: str,
        part: Part,
        edits: fields.Edits,
    ) -> dict[int, dict[str, Any]]:
        """Entries of each layer of a list that differ; those layers are put in place.

        Args:
            base: the config without such entries; what some layer needs in it is added.
            small: the model of that config.
            path: of the list.
            part: of the config that speaks of it.
            edits: what the changes that are not of one layer have made of the config.
        """
        known: dict[str, tuple[str, ...]] = {}
        found: dict[int, dict[str, Any]] = {}
        changed = self.whole.by_list().get(path, {})
        held = overrides(inside(self.whole.model.config, part))
        for number in sorted(changed.keys() | held.keys()):
            place = self.whole.names.shorter(path, number)
            if place is None:
                continue
            own = {
                name: self._of_rest(value, part) if ".".join((*part, name)) in edits else value
                for name, value in held.get(number, {}).items()
            }
            layer = _Layer(path, part, place)
            of_layer, names = self._layer(base, small, layer, own, changed.get(number, []), known)
            target = inside(base, part)
            for name in of_layer:
                if not hasattr(target, name):  # transformers wants a value for the other layers
                    setattr(target, name, fields.head_size(target))
            found[place] = of_layer
            known |= names
        return found

    def _of_rest(self, value: Any, part: Part) -> Any:
        """What the changes that are not of one layer make of an entry of a layer."""
        for change in self.whole.rest():
            if change.part == part and type(value) is int:
                value = value if (new := change.of(value)) is None else new
        return value

    def _layer(
        self,
        base: PreTrainedConfig,
        small: PreTrainedModel,
        place: _Layer,
        own: Mapping[str, Any],
        changed: Sequence[Change],
        known: Mapping[str, tuple[str, ...]],
    ) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
        """Entries that give a layer its sizes, and their names; the layer is put in place.

        Args:
            base: the config for all layers.
            small: the model.
            place: of the layer.
            own: entries that the layer had already.
            changed: what it loses.
            known: names of entries that have served in other layers.
        """
        layers: Any = small.get_submodule(place.path)
        alone = fields.edited(base, {".".join((*place.part, n)): v for n, v in own.items()})
        cls, training = type(layers[place.number]), layers[place.number].training
        inner = f"{place.path}.{place.number}."
        errors: list[str] = []

        def make(config: PreTrainedConfig, errors: list[str]) -> nn.Module | None:
            try:
                with torch.device("meta"):
                    made: nn.Module = layers_apart.layer_of(
                        cls, inside(config, place.part), place.number
                    )
            except Exception as error:  # whatever a constructor may raise
                errors.append(architecture.last_line(error))
                return None
            return made

        def wanted(name: str) -> torch.Tensor | None:
            return self.whole.tensor(inner + name)

        for edits, names in ways(make, wanted, alone, changed, known):
            layer = make(fields.edited(alone, edits), errors)
            if layer is None:
                continue
            layers[place.number] = layer.train(training)
            found = misfit(small, self.whole.tensors, self.whole.names, inside=inner)
            if not found:
                return {**own, **{n.rpartition(".")[2]: v for n, v in edits.items()}}, names
            errors.append(found)
        wrong = next(iter(errors), "")
        if not changed:
            raise ShrinkError(f"{place.path}.{place.number}: {wrong}")
        raise ShrinkError(f"{_what(changed)}: {wrong or 'no entry of the config counts them'}")

    def _settled(
        self,
        base: PreTrainedConfig,
        small: PreTrainedModel,
        found: Mapping[str, dict[int, dict[str, Any]]],
        stacks: Mapping[str, Part],
    ) -> PreTrainedModel:
        """The model with its config; with one for all layers of a list where they are alike."""
        several: dict[Part, dict[int, dict[str, Any]]] = {}
        alike: dict[str, Any] = {}
        for path, part in stacks.items():
            each = list(found[path].values())
            if len(each) == self.whole.lengths()[path] and all(one == each[0] for one in each):
                alike |= {".".join((*part, name)): value for name, value in each[0].items()}
            elif each:
                several[part] = found[path]
        if alike:
            base = fields.edited(base, alike)
            errors: list[str] = []
            again = self.whole.made(base, errors)
            if again is None:
                why = next(iter(errors), "other lists of layers")
                raise ShrinkError(f"{_what(self.whole.changed)}: {why}")
            small = again
        if several:
            paths = {path: list(part) for path, part in stacks.items() if part in several}
            try:
                with torch.device("meta"):
                    # Modules inside keep the config without: reading a size from one with it is an
                    # error.
                    layers_apart.build_apart(small, fields.apart(base, several), paths)
            except Exception as error:  # whatever validators and constructors may raise
                why = architecture.last_line(error)
                raise ShrinkError(f"{_what(self.whole.changed)}: {why}") from error
        if wrong := misfit(small, self.whole.tensors, self.whole.names):
            raise ShrinkError(f"{_what(self.whole.changed)}: {wrong}")
        return small


@dataclass(frozen=True)
class _Layer:
    """Where a layer is: list, part of the config, number."""

    path: str
    part: Part
    number: int


def _named(model: PreTrainedModel, part: Part) -> str:
    return ".".join((type(model.config).__name__, *part))


def _what(changed: Sequence[Change]) -> str:
    """What cannot be said, and the usual reason."""
    words = {change.units for change in changed}
    names = ", ".join(change.group for change in changed)
    if words & {"qk_dim", "v_dim"}:
        why = "query/key and value dims of a head are one number there"
    elif words & {"heads", "queries"}:
        why = "the size of a head follows from how many there are"
    else:
        why = "no entry of the config makes these sizes alone"
    keep = ", ".join(f'"{change.group}": 0' for change in changed)
    return (
        f"{names} cannot be said in a config ({why}; fxprune.rewrite makes a graph of it, and "
        f"overrides={{{keep}}} leaves them whole)"
    )
