"""Tensors that a checkpoint has renamed, cut or joined otherwise than the class of its model.

Transformers says how by ``WeightConverter`` and its kin, and applies them to all tensors of a model
at a time. Here they are applied to those that belong together alone: an expert's matrices in the
checkpoint, and the tensor that holds those of all experts of a layer in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.errors import CheckpointError
from fxprune.hf.open.architecture import is_transformers, last_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Read = Callable[[str], Tensor]


def converts(model: Any) -> bool:
    """Whether transformers saves a model with other tensors than its class has."""
    return bool(_when_saved(model))


def _when_saved(model: Any) -> list[Any]:
    """What transformers applies to a model's tensors, backwards, when it saves them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    every = get_model_conversion_mapping(model, add_legacy=False)
    return [each for each in every if not isinstance(each, PrefixChange)]


@dataclass(frozen=True)
class Together:
    """Tensors of a checkpoint that give one or more of the model, and nothing else does.

    Attributes:
        first: what transformers calls what they give.
        transform: how; None for a tensor that is in the model what it is in the checkpoint.
        sources: their names, each with the pattern of the transform that it fits.
        shapes: of what they give.
    """

    first: str
    transform: Any
    sources: tuple[tuple[str, str], ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensors(self, model: Any, read: Read) -> dict[str, Tensor]:
        """What they give, by name in the model.

        Args:
            model: without weights.
            read: gives a tensor of the checkpoint.

        Raises:
            CheckpointError: they do not go together, as where one is missing.
        """
        if self.transform is None:
            return {self.first: read(self.first)}
        transform = copy.deepcopy(self.transform)
        for name, pattern in self.sources:
            transform.add_tensor(self.first, name, pattern, read(name))
        try:
            found = transform.convert(self.first, model=model, config=model.config)
        except Exception as error:  # whatever shapes that do not fit, or too few of them, lead to
            raise CheckpointError(
                f"{self.first!r} is not to be had from {self.sources[0][0]!r} and its like: "
                f"{last_line(error)}; a tensor is missing or damaged: copy or save them again"
            ) from error
        return {name: each[0] if isinstance(each, list) else each for name, each in found.items()}


def of_checkpoint(model: nn.Module, blanks: Mapping[str, Tensor]) -> dict[str, Together]:
    """What each tensor of a model is made of, as ``from_pretrained`` makes it.

    Args:
        model: without weights.
        blanks: the tensors of the checkpoint, on ``meta``.
    """
    if not is_transformers(model) or not converts(model):
        shapes = {name: tuple(blank.shape) for name, blank in blanks.items()}
        return {n: Together(n, None, ((n, n),), {n: shape}) for n, shape in shapes.items()}
    return _converted(model, blanks)


def _converted(model: Any, blanks: Mapping[str, Tensor]) -> dict[str, Together]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    every = get_model_conversion_mapping(model)
    renamings = [each for each in every if isinstance(each, WeightRenaming)]
    converters = [each for each in every if isinstance(each, WeightConverter)]
    of_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, own = model.base_model_prefix, model.state_dict()
    found: dict[str, list[tuple[str, str]]] = {}
    how: dict[str, Any] = {}
    for name in sorted(blanks, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if new not in own and name in own:
            new, pattern = rename_source_key(name, [], [], prefix, own)
        if new not in own:
            continue
        if pattern is None:
            how[new], pattern = WeightRenaming(name, new), name
        else:
            how.setdefault(new, of_pattern[pattern])
        found.setdefault(new, []).append((name, pattern))
    made: dict[str, Together] = {}
    for new, sources in found.items():
        each = Together(new, how[new], tuple(sources))
        given = each.tensors(model, blanks.__getitem__).items()
        each.shapes.update({given_name: tuple(tensor.shape) for given_name, tensor in given})
        made |= dict.fromkeys(each.shapes, each)
    return made


class Reverted:
    """The tensors of a model as ``save_pretrained`` writes them, some at a time.

    Args:
        model: without weights.
        state: its tensors that are saved, on ``meta``.
        read: gives each of them.
    """

    def __init__(self, model: PreTrainedModel, state: dict[str, Tensor], read: Read) -> None:
        from transformers.core_model_loading import WeightConverter, apply_converters

        self._model, self._read = model, read
        backwards = [each.reverse_transform() for each in _when_saved(model)[::-1]]
        converters = [each for each in backwards if isinstance(each, WeightConverter)]
        parts: dict[str, list[str]] = {}
        for name in state:
            parts.setdefault(apply_converters(name, converters)[0], []).append(name)
        self.state: dict[str, Tensor] = {}
        self._parts: dict[str, list[str]] = {}
        for names in parts.values():
            for new, blank in self._reverted({name: state[name] for name in names}).items():
                # Of its own: parts of a tensor on meta look as if they were one.
                self.state[new] = torch.empty(blank.shape, dtype=blank.dtype, device="meta")
                self._parts[new] = names
        self._ready: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        """A tensor that is written; each is asked for once."""
        if name not in self._ready:
            self._ready |= self._reverted({each: self._read(each) for each in self._parts[name]})
        return self._ready.pop(name)

    def _reverted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self._model, state)
        return found
