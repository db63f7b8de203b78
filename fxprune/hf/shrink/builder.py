"""Find the config whose model has the shapes that a plan leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fxprune.hf.shrink import fields
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import misfit
from fxprune.hf.shrink.layerwise import Layerwise
from fxprune.hf.shrink.parts import even, part_of, uneven
from fxprune.hf.shrink.wanted import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_TRIES = 200  # entries can be combined in many ways


class Builder(Wanted):
    """One try after the other, each built on ``meta`` and compared."""

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

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of one config for all layers, if all that have units alike lose alike.

        Layers may be of several sorts: some with an MLP and some with experts, say.
        """
        found: dict[tuple[str, str, int], Change] = {}
        for path, layers in self.by_list().items():
            for number, changes in layers.items():
                for change in changes:
                    name = change.group.removeprefix(f"{path}.{number}.")
                    if found.setdefault((path, name, change.size), change).kept != change.kept:
                        return None
        tries = fields.choices(config, [*self.rest(), *found.values()])
        for edits, _ in itertools.islice(tries, _TRIES):
            small = self.made(fields.edited(config, edits), errors)
            if small is None:
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if not wrong:
                return small
            errors.append(wrong)
        return None
