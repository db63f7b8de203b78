"""Find the config whose model has the shapes that a plan leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxprune.errors import ModelError, ShrinkError
from fxprune.hf.open import architecture
from fxprune.hf.shrink import fields
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import misfit
from fxprune.hf.shrink.layerwise import Layerwise
from fxprune.hf.shrink.parts import even, part_of, uneven
from fxprune.hf.shrink.stacks import Names, Stack, layer_lists

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
                raise self.no_entry(errors)
        return Layerwise(self).build(configs, errors)

    def _shorter(self) -> Iterator[PreTrainedConfig]:
        """Configs for the layers that stay, without entries for single ones."""
        config = even(self.model.config)
        if not self.stacks:
            return iter([config])
        places = [part_of(self.model, stack.path) for stack in self.stacks]
        return fields.shorter(config, self.stacks, places)

    def no_entry(self, errors: Sequence[str]) -> ShrinkError:
        """What to raise where the number of layers cannot be said."""
        paths = ", ".join(stack.path for stack in self.stacks)
        why = f" ({errors[0]})" if errors else ""
        name = type(self.model.config).__name__
        return ShrinkError(f"no entry of {name} says how many layers {paths} has{why}")

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of one config for all layers of a list, if all lose alike."""
        some: list[Change] = []
        for path, layers in self.by_list().items():
            each = {tuple(sorted((c.units, c.size, c.kept) for c in x)) for x in layers.values()}
            if len(each) > 1 or len(layers) < self.lengths().get(path, 0):
                return None
            some += next(iter(layers.values()))
        for edits, _ in fields.choices(config, [*self.rest(), *some]):
            small = self.made(fields.edited(config, edits), errors)
            if small is None:
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if not wrong:
                return small
            errors.append(wrong)
        return None

    def rest(self) -> list[Change]:
        """The changes that are not of one layer."""
        return [change for change in self.changed if change.layer is None]

    def lengths(self) -> dict[str, int]:
        """How many layers are left in each list."""
        lengths = {path: len(layers) for path, layers in layer_lists(self.model)}
        return lengths | {stack.path: len(stack.kept) for stack in self.stacks}

    def made(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
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
        return small if made == self.lengths() else None

    def by_list(self) -> dict[str, dict[int, list[Change]]]:
        """The changes of single layers, by list and number."""
        found: dict[str, dict[int, list[Change]]] = {}
        for change in self.changed:
            if change.layer is not None:
                path, number = change.layer
                found.setdefault(path, {}).setdefault(number, []).append(change)
        return found
