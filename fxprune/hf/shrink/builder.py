"""Find the config whose model has the shapes that a plan leaves."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fxprune.hf.open import architecture
from fxprune.hf.shrink import fields
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import differences, misfit, misfits, named_tensors
from fxprune.hf.shrink.layerwise import Layerwise
from fxprune.hf.shrink.parts import even, inside, lists_of, overrides, part_of, uneven
from fxprune.hf.shrink.probing import ways
from fxprune.hf.shrink.shorter import shorter
from fxprune.hf.shrink.wanted import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class Builder(Wanted):
    """One try after the other, each built on ``meta`` and compared."""

    def candidates(self) -> Iterator[PreTrainedModel]:
        """Models on ``meta`` that have the right shapes, the most plausible ones first.

        Not all of them need compute the right thing: some entries of a config change no shape.

        Raises:
            ShrinkError: there are no more; says what stands in the way.
        """
        errors: list[str] = []
        configs: list[PreTrainedConfig] = []
        for config in self._shorter(errors):
            configs.append(config)
            yield from self._alike(config, errors)
        if uneven(self.model.config):
            errors = []  # the class reads no entries for single layers itself
        elif not self.changed:
            raise self.no_entry(errors)
        yield Layerwise(self).build(configs, errors)

    def _shorter(self, errors: list[str]) -> Iterator[PreTrainedConfig]:
        """Configs for the layers that stay, without entries for single ones."""
        config = even(self.model.config)
        if (tokens := self.tokens()) is not None:
            tokens.renumber(config)
        if not self.stacks:
            return iter([config])
        places = [part_of(self.model, stack.path) for stack in self.stacks]
        whole = named_tensors(self.model)

        def wrong(config: PreTrainedConfig) -> float:
            small = self._made(config, errors)
            if small is None:
                return math.inf
            unlike = differences(self.model, small, self.names, ())
            misfit = misfits(small, whole, self.names)
            return sum(not each.counts for each in unlike) + len(list(misfit))

        return shorter(config, self.stacks, places, wrong)

    def _made(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of a config to which the entries for single layers are added, by new numbers."""
        config = copy.deepcopy(config)
        for part in uneven(self.model.config):
            paths = lists_of(self.model, part)
            own: dict[int | str, dict[str, Any]] = {
                place: each
                for number, each in overrides(inside(self.model.config, part)).items()
                if (place := self.names.shorter(paths[0] if paths else "", number)) is not None
            }
            try:
                inside(config, part).per_layer_config = own
            except Exception as error:  # whatever transformers' validators may raise
                errors.append(architecture.last_line(error))
                return None
        return self.made(config, errors)

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> Iterator[PreTrainedModel]:
        """Models of one config for all layers, if all that have units alike lose alike.

        Layers may be of several sorts: some with an MLP and some with experts, say.
        """
        found: dict[tuple[str, str, int], Change] = {}
        for path, layers in self.by_list().items():
            for number, changes in layers.items():
                for change in changes:
                    name = change.group.removeprefix(f"{path}.{number}.")
                    if found.setdefault((path, name, change.size), change).kept != change.kept:
                        return
        changes = [*self.rest(), *found.values()]
        for edits, _ in ways(self._made, self.tensor, config, changes):
            small = self._made(fields.edited(config, edits), errors)
            if small is None:
                continue
            checked = self.changed or uneven(self.model.config)
            wrong = misfit(small, self.tensors, self.names) if checked else ""
            if wrong:
                errors.append(wrong)
            else:
                yield small
