"""Find the config whose model has the shapes that a plan leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import ModelError, ShrinkError
from fxprune.hf import architecture, fields, layers_apart
from fxprune.hf.fields import Change
from fxprune.hf.fill import misfit
from fxprune.hf.parts import Part, even, inside, lists_of, overrides, part_of, stacks_apart, uneven
from fxprune.hf.stacks import Names, Stack, layer_lists

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Builder:
    """One try after the other, each built on ``meta`` and compared.

    Attributes:
        model: the whole model.
        stacks: its lists of layers that lose some.
        names: from names in the smaller model to those in the whole one.
        tensors: what the smaller model must hold, by its name in the whole one.
        changed: the groups that lose units.
    """

    model: PreTrainedModel
    stacks: Sequence[Stack]
    names: Names
    tensors: Mapping[str, torch.Tensor]
    changed: Sequence[Change]

    def build(self) -> PreTrainedModel:
        """The model, on ``meta``."""
        errors: list[str] = []
        configs = list(self._shorter())
        if not uneven(self.model.config):
            for config in configs:
                if (small := self._alike(config, errors)) is not None:
                    return small
            if not self.changed:
                raise self._no_entry(errors)
        return self._apart(configs, errors)

    def _shorter(self) -> Iterator[PreTrainedConfig]:
        """Configs for the layers that stay, without entries for single ones."""
        config = even(self.model.config)
        if not self.stacks:
            return iter([config])
        places = [part_of(self.model, stack.path) for stack in self.stacks]
        return fields.shorter(config, self.stacks, places)

    def _no_entry(self, errors: Sequence[str]) -> ShrinkError:
        paths = ", ".join(stack.path for stack in self.stacks)
        why = f" ({errors[0]})" if errors else ""
        name = type(self.model.config).__name__
        return ShrinkError(f"no entry of {name} says how many layers {paths} has{why}")

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of one config for all layers of a list, if all lose alike."""
        some: list[Change] = []
        for path, layers in self._by_list().items():
            each = {tuple(sorted((c.units, c.size, c.kept) for c in x)) for x in layers.values()}
            if len(each) > 1 or len(layers) < self._lengths().get(path, 0):
                return None
            some += next(iter(layers.values()))
        for edits, _ in fields.choices(config, [*self._rest(), *some]):
            small = self._made(fields.edited(config, edits), errors)
            if small is None:
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if not wrong:
                return small
            errors.append(wrong)
        return None

    def _rest(self) -> list[Change]:
        """The changes that are not of one layer."""
        return [change for change in self.changed if change.layer is None]

    def _lengths(self) -> dict[str, int]:
        """How many layers are left in each list."""
        lengths = {path: len(layers) for path, layers in layer_lists(self.model)}
        return lengths | {stack.path: len(stack.kept) for stack in self.stacks}

    def _made(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of a config, if there can be one and it has as many layers as stay."""
        try:
            small = architecture.build(
                config,
                dtype=self.model.dtype,
                architecture=type(self.model).__name__,
                attn_implementation=self.model.config._attn_implementation,
            )
        except ModelError as error:
            errors.append(str(error))
            return None
        made = {path: len(layers) for path, layers in layer_lists(small)}
        return small if made == self._lengths() else None

    def _by_list(self) -> dict[str, dict[int, list[Change]]]:
        """The changes of single layers, by list and number."""
        found: dict[str, dict[int, list[Change]]] = {}
        for change in self.changed:
            if change.layer is not None:
                path, number = change.layer
                found.setdefault(path, {}).setdefault(number, []).append(change)
        return found

    def _apart(self, configs: Sequence[PreTrainedConfig], errors: list[str]) -> PreTrainedModel:
        """A model whose layers have configs of their own."""
        stacks = self._parts()
        rest = self._rest()
        for config in configs:
            for edits, _ in fields.choices(config, rest):
                base = fields.edited(config, edits)
                small = self._made(base, errors)
                if small is None:
                    continue
                found = {
                    path: self._overrides(base, small, path, part, edits)
                    for path, part in stacks.items()
                }
                wrong = misfit(small, self.tensors, self.names)
                if not wrong:
                    return self._settled(base, small, found, stacks)
                errors.append(wrong)
        if not self.changed:
            raise self._no_entry(errors)
        why = next(filter(None, errors), "no entry of the config")
        raise ShrinkError(f"{_what(rest or self.changed)}: {why}")

    def _parts(self) -> dict[str, Part]:
        """The lists with layers of their own sizes, and the part of the config for each.

        Raises:
            ShrinkError: entries for single layers cannot say which list they speak of.
        """
        paths = [*dict.fromkeys([*self._by_list(), *stacks_apart(self.model)])]
        found = {path: part_of(self.model, path) for path in paths}
        for path, part in found.items():
            lists = lists_of(self.model, part)
            if lists != [path]:
                several = f" ({', '.join(lists)})" if lists else ""
                raise ShrinkError(
                    f"{type(self.model).__name__} has {len(lists)} lists of layers{several} that "
                    f"{_named(self.model, part)} describes, and sizes of each layer can be said of "
                    f"one: prune all layers of {path} alike (ranking='local' with a budget of "
                    "units, or rounding), or use fxprune.rewrite, which makes a graph"
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
        changed = self._by_list().get(path, {})
        held = overrides(inside(self.model.config, part))
        for number in sorted(changed.keys() | held.keys()):
            place = self.names.shorter(path, number)
            if place is None:
                continue
            own = {
                name: self._of_rest(value, part) if ".".join((*part, name)) in edits else value
                for name, value in held.get(number, {}).items()
            }
            layer = _Layer(path, part, place)
            left = [change for change in changed.get(number, []) if not self._said(change)]
            of_layer, names = self._layer(base, small, layer, own, left, known)
            target = inside(base, part)
            for name in of_layer:
                if not hasattr(target, name):  # transformers wants a value for the other layers
                    setattr(target, name, fields.head_size(target))
            found[place] = of_layer
            known |= names
        return found

    def _said(self, change: Change) -> bool:
        """Whether a change that is not of one layer has made a layer's entry what it must be."""
        return any(
            other.part == change.part
            and other.of(change.size) == change.kept
            and fields.same_entry(other, change)
            for other in self._rest()
        )

    def _of_rest(self, value: Any, part: Part) -> Any:
        """What the changes that are not of one layer make of an entry of a layer."""
        for change in self._rest():
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
        wrong = ""
        for edits, names in fields.choices(alone, changed, known):
            config = inside(fields.edited(alone, edits), place.part)
            cls = type(layers[place.number])
            try:
                with torch.device("meta"):
                    layer = layers_apart.layer_of(cls, config, place.number)
            except Exception as error:  # whatever a constructor may raise
                wrong = wrong or architecture.last_line(error)
                continue
            layers[place.number] = layer.train(layers[place.number].training)
            inner = f"{place.path}.{place.number}."
            found = misfit(small, self.tensors, self.names, inside=inner)
            if not found:
                return {**own, **{n.rpartition(".")[2]: v for n, v in edits.items()}}, names
            wrong = wrong or found
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
            if len(each) == self._lengths()[path] and all(one == each[0] for one in each):
                alike |= {".".join((*part, name)): value for name, value in each[0].items()}
            elif each:
                several[part] = found[path]
        if alike:
            base = fields.edited(base, alike)
            errors: list[str] = []
            again = self._made(base, errors)
            if again is None:
                why = next(iter(errors), "other lists of layers")
                raise ShrinkError(f"{_what(self.changed)}: {why}")
            small = again
        if several:
            paths = {path: list(part) for path, part in stacks.items() if part in several}
            with torch.device("meta"):
                # Modules inside keep the config without: reading a size from one with it is an
                # error.
                layers_apart.build_apart(small, fields.apart(base, several), paths)
        if wrong := misfit(small, self.tensors, self.names):
            raise ShrinkError(f"{_what(self.changed)}: {wrong}")
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
