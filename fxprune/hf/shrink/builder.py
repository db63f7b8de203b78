"""Find the config whose model has the shapes that a plan leaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fxprune.hf.shrink import fields
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import misfit
from fxprune.hf.shrink.layerwise import Layerwise
from fxprune.hf.shrink.parts import even, part_of, uneven
from fxprune.hf.shrink.probing import combined, probed
from fxprune.hf.shrink.wanted import Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


_TRIES = 200  # entries can be combined in many ways


class Builder(Wanted):
    """One try after the other, each built on ``meta`` and compared."""

    def candidates(self) -> Iterator[PreTrainedModel]:
        """Models on ``meta`` that have the right shapes, the most plausible ones first.

        Not all of them need compute the right thing: some entries of a config change no shape.

        Raises:
            ShrinkError: there are no more; says what stands in the way.
        """
        errors: list[str] = []
        configs = list(self._shorter())
        if not uneven(self.model.config):
            for config in configs:
                yield from self._alike(config, errors)
            if not self.changed:
                raise self.no_entry(errors)
        yield Layerwise(self).build(configs, errors)

    def _shorter(self) -> Iterator[PreTrainedConfig]:
        """Configs for the layers that stay, without entries for single ones."""
        config = even(self.model.config)
        if not self.stacks:
            return iter([config])
        places = [part_of(self.model, stack.path) for stack in self.stacks]
        return fields.shorter(config, self.stacks, places)

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
        known = (edits for edits, _ in fields.choices(config, changes))
        tries = itertools.chain(
            itertools.islice(known, _TRIES), itertools.islice(self._probed(config, changes), _TRIES)
        )
        for edits in tries:
            small = self.made(fields.edited(config, edits), errors)
            if small is None:
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if wrong:
                errors.append(wrong)
            else:
                yield small

    def _probed(
        self, config: PreTrainedConfig, changes: Sequence[Change]
    ) -> Iterator[fields.Edits]:
        """Values of entries whose names say nothing; to find them takes a model for each."""
        if changes:
            yield from combined(probed(self, config, changes), changes)
