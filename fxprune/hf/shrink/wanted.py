"""What a smaller transformers model must be, and one try to build it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxprune.errors import ModelError, ShrinkError
from fxprune.hf.open import architecture
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.stacks import Names, Stack, layer_lists
from fxprune.hf.shrink.token_ids import Numbers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Wanted:
    """What is to be built, and a try at it.

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

    def no_entry(self, errors: Sequence[str]) -> ShrinkError:
        """What to raise where the number of layers cannot be said."""
        paths = ", ".join(stack.path for stack in self.stacks)
        why = f" ({errors[0]})" if errors else ""
        name = type(self.model.config).__name__
        return ShrinkError(f"no entry of {name} says how many layers {paths} has{why}")

    def tensor(self, name: str) -> torch.Tensor | None:
        """What is to be put there, by a name in the smaller model; None if there is nothing."""
        return self.tensors.get(self.names.original(name))

    def rest(self) -> list[Change]:
        """The changes that are not of one layer."""
        return [change for change in self.changed if change.layer is None]

    def tokens(self) -> Numbers | None:
        """The new numbers of tokens, if some go."""
        return next((c.numbers for c in self.changed if c.numbers is not None), None)

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
                apart=False,
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

    def of(self, path: str) -> list[Change]:
        """The changes of the layers of a list."""
        return [change for layer in self.by_list().get(path, {}).values() for change in layer]

    def alike(self, path: str) -> bool:
        """Whether all layers of a list that stay lose the same."""
        left = [self.names.shorter(path, number) for number in self.by_list().get(path, {})]
        lose = Counter((change.units, change.size, change.kept) for change in self.of(path))
        return len(left) == self.lengths()[path] and all(n % len(left) == 0 for n in lose.values())
