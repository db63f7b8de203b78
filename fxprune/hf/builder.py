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
        for config in self._shorter():
            if (small := self._alike(config, errors)) is not None:
                return small
        if not self.changed:
            paths = ", ".join(stack.path for stack in self.stacks)
            why = f" ({errors[0]})" if errors else ""
            raise ShrinkError(
                f"no entry of {type(self.model.config).__name__} says how many layers {paths} "
                f"has{why}"
            )
        config, path = next(self._shorter()), self._path()
        return self._apart(config, path)

    def _shorter(self) -> Iterator[PreTrainedConfig]:
        if self.stacks:
            return fields.shorter(self.model.config, self.stacks)
        return iter([self.model.config])

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        """A model of one config for all layers, if all lose alike."""
        layers = self._by_layer()
        rest = [change for change in self.changed if change.layer is None]
        each = {tuple(sorted((c.units, c.size, c.kept) for c in some)) for some in layers.values()}
        if len(each) > 1 or (layers and len(layers) < sum(self._lengths().values())):
            return None
        some = next(iter(layers.values()), [])
        for edits, _ in fields.choices(config, [*rest, *some]):
            small = self._made(fields.edited(config, edits), errors)
            made = {} if small is None else {path: len(x) for path, x in layer_lists(small)}
            if small is None or made != self._lengths():
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if not wrong:
                return small
            errors.append(wrong)
        return None

    def _lengths(self) -> dict[str, int]:
        """How many layers are left in each list."""
        lengths = {path: len(layers) for path, layers in layer_lists(self.model)}
        return lengths | {stack.path: len(stack.kept) for stack in self.stacks}

    def _made(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        try:
            return architecture.build(
                config,
                dtype=self.model.dtype,
                architecture=type(self.model).__name__,
                attn_implementation=self.model.config._attn_implementation,
            )
        except ModelError as error:
            errors.append(str(error))
            return None

    def _by_layer(self) -> dict[tuple[str, int], list[Change]]:
        found: dict[tuple[str, int], list[Change]] = {}
        for change in self.changed:
            if change.layer is not None:
                found.setdefault(change.layer, []).append(change)
        return found

    def _path(self) -> str:
        """The one list that layers of their own sizes are in."""
        paths = [path for path, _ in layer_lists(self.model)]
        if len(paths) != 1:
            raise ShrinkError(
                f"{type(self.model).__name__} has {len(paths)} lists of layers, and a config with "
                "sizes of each layer speaks of one"
            )
        return paths[0]

    def _apart(self, config: PreTrainedConfig, path: str) -> PreTrainedModel:
        """A model whose layers have configs of their own."""
        rest = [change for change in self.changed if change.layer is None]
        errors: list[str] = []
        for edits, _ in fields.choices(config, rest):
            base = fields.edited(config, edits)
            small = self._made(base, errors)
            if small is None:
                continue
            overrides = self._overrides(base, small, path)
            # Modules inside keep the config without: reading a size from one with it is an error.
            small.config = fields.apart(base, overrides)
            wrong = misfit(small, self.tensors, self.names)
            if not wrong:
                return small
            errors.append(wrong)
        raise ShrinkError(f"{_what(rest)}: {next(filter(None, errors), 'no entry of the config')}")

    def _overrides(
        self, base: PreTrainedConfig, small: PreTrainedModel, path: str
    ) -> dict[int | str, dict[str, Any]]:
        """Entries of each layer that differ from the config's; the layers are put in place."""
        known: dict[str, tuple[str, ...]] = {}
        found: dict[int | str, dict[str, Any]] = {}
        for (_, number), changed in sorted(self._by_layer().items()):
            place = self.names.shorter(path, number)
            edits, names = self._layer(base, small, path, place, changed, known)
            for name in edits:
                if not hasattr(base, name):  # transformers wants a value for the other layers
                    setattr(base, name, fields.head_size(base))
            found[place] = dict(edits)
            known |= names
        return found

    def _layer(
        self,
        base: PreTrainedConfig,
        small: PreTrainedModel,
        path: str,
        place: int,
        changed: Sequence[Change],
        known: Mapping[str, tuple[str, ...]],
    ) -> tuple[fields.Edits, dict[str, tuple[str, ...]]]:
        """Entries that give a layer its sizes, and their names; the layer is put in place."""
        layers: Any = small.get_submodule(path)
        wrong = ""
        for edits, names in fields.choices(base, changed, known):
            cls, config = type(layers[place]), fields.edited(base, edits)
            try:
                with torch.device("meta"):
                    layer = layers_apart.layer_of(cls, config, place)
            except Exception as error:  # whatever a constructor may raise
                wrong = wrong or architecture.last_line(error)
                continue
            layers[place] = layer.train(layers[place].training)
            found = misfit(small, self.tensors, self.names, inside=f"{path}.{place}.")
            if not found:
                return edits, names
            wrong = wrong or found
        raise ShrinkError(f"{_what(changed)}: {wrong or 'no entry of the config counts them'}")


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
