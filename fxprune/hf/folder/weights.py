"""Weights that are read when they are needed: of a checkpoint on disk, or of a module."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.compensate.mended import Mended
from fxprune.data.loader import Source
from fxprune.errors import CheckpointError
from fxprune.hf.folder import shards
from fxprune.hf.folder.checkpoint import FACTS
from fxprune.hf.folder.conversions import Together, of_checkpoint
from fxprune.hf.open import architecture, guard
from fxprune.hf.open.models import fetch
from fxprune.hf.shrink.fill import cut, named_tensors, unsaved
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.plan import Plan
from fxprune.rewrite.on_demand import DenseWeights, SmallWeights
from fxprune.rewrite.planned import planned
from fxprune.trace.digests import digest
from fxprune.trace.traced import Traced


class Weights:
    """Where the weights of a model are read from, while it runs piece by piece.

    Args:
        where: a folder of safetensors, in one file or several; the name of a model on the hub; or a
            module, whose tensors are moved to ``device`` in turn, from several devices or from
            where accelerate has put them aside (``device_map=``, ``disk_offload``).
        device: where the model runs.
        memory: how many bytes of what goes from piece to piece stay in host memory; what is more
            lies in temporary files (of ``TMPDIR``). None keeps all of it in memory.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | nn.Module,
        *,
        device: str | torch.device = "cpu",
        memory: int | None = None,
    ) -> None:
        self.where, self.device, self.memory = where, torch.device(device), memory
        self.scratch: Path | None = None
        self._places: dict[str, Path] = {}
        self._together: dict[str, Together] | None = None

    def __repr__(self) -> str:
        where = type(self.where).__name__ if isinstance(self.where, nn.Module) else self.where
        return f"Weights({str(where)!r}, device={str(self.device)!r}, memory={self.memory})"

    def check(self, traced: Traced) -> None:
        """Refuse a model that has not all of its tensors here, of its shapes; reads no weights.

        Raises:
            CheckpointError: the folder is damaged, or lacks a tensor of the model.
            ModelError: there is no such folder or model.
        """
        if isinstance(self.where, nn.Module):
            for name in traced.tensors:
                self._of_module(traced, name)
            return
        for name in traced.tensors:
            if (found := self._made_of(traced, name)) is None:
                self._computed(traced, name)
            else:
                own, together = found
                file = self._places[together.sources[0][0]]
                _check_shape(traced, name, together.shapes[own], str(file))

    def read(self, traced: Traced, name: str) -> Tensor:
        """A tensor of a traced model, of the graph's dtype, on the device.

        Args:
            traced: the model; its own tensors may be on ``meta``.
            name: the canonical name.

        Raises:
            CheckpointError: it is not here, or not of the model's shape.
            ModelError: there is no such folder or model.
        """
        dtype = blank_of(traced, name).dtype
        if isinstance(self.where, nn.Module):
            part, leaf = self._of_module(traced, name)
            if not leaf:
                return blank_of(traced, name).detach().to(self.device, dtype)
            return _present(part, leaf).to(self.device, dtype)
        found = self._made_of(traced, name)
        if found is None:
            return self._computed(traced, name).detach().to(self.device, dtype)
        own, together = found
        with contextlib.ExitStack() as stack:
            # Opened anew, for what was read of a mapped file stays resident until it is closed.
            files = {self._places[source] for source, _ in together.sources}
            there = {file: stack.enter_context(shards.opened(file)) for file in files}
            mapped: set[int] = set()

            def read(source: str) -> Tensor:
                part: Tensor = there[self._places[source]].get_tensor(source)
                mapped.add(part.untyped_storage().data_ptr())
                return part

            made = together.tensors(traced.module, read)[own]
            file = self._places[together.sources[0][0]]
            _check_shape(traced, name, tuple(made.shape), str(file))
            copied = made.untyped_storage().data_ptr() in mapped
            return made.to(self.device, dtype, copy=copied)

    def ahead(self, traced: Traced, names: Sequence[str]) -> None:
        """Have the system read tensors from disk, while others are computed with."""
        if isinstance(self.where, nn.Module):
            return
        found = (self._made_of(traced, name) for name in names)
        sources = [name for each in found if each for name, _ in each[1].sources]
        for file in {self._places[name] for name in sources}:
            shards.will_read(file, [name for name in sources if self._places[name] == file])

    def key(self) -> dict[str, Any]:
        """What tells these weights from others, as JSON has it."""
        if isinstance(self.where, nn.Module):
            names = sorted(named_tensors(self.where))
            parts = ((name, *name.rpartition(".")[::2]) for name in names)
            module = self.where
            read = ((n, _present(module.get_submodule(p), leaf)) for n, p, leaf in parts)
            return {"weights": digest(read)}
        files = shards.shards(_home(self.where))
        return {
            "weights": [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        }

    def _find(self) -> dict[str, Tensor]:
        """Note which file each tensor is in; all of them, on ``meta``."""
        assert not isinstance(self.where, nn.Module)
        folder = _home(self.where)
        index = folder / guard.INDEX
        listed = guard.read_index(index) if index.is_file() else {}
        found: dict[str, Tensor] = {}
        for file in shards.shards(folder):
            blanks = shards.blanks(file)
            found |= blanks
            self._places.update(dict.fromkeys(blanks, file))
        if missing := next((name for name in listed if name not in found), None):
            raise CheckpointError(
                f"{folder / listed[missing]} lacks {missing!r}, which {index.name} says is in it; "
                "copy or save the folder again"
            )
        return found

    def _made_of(self, traced: Traced, name: str) -> tuple[str, Together] | None:
        """What a tensor is made of, and what it is called there; None if no checkpoint holds it."""
        if self._together is None:
            self._together = of_checkpoint(traced.module, self._find())
        known = self._together
        return next(((n, known[n]) for n in _names(traced, name) if n in known), None)

    def _of_module(self, traced: Traced, name: str) -> tuple[nn.Module, str]:
        """The part of the module that holds a tensor, and what it calls it.

        Raises:
            CheckpointError: there are no weights, or of another shape.
        """
        assert isinstance(self.where, nn.Module)
        own = named_tensors(self.where)
        whole = next((n for n in _names(traced, name) if n in own), None)
        kind = type(self.where).__name__
        found = blank_of(traced, name) if whole is None else own[whole]
        path, _, leaf = (whole or "").rpartition(".")
        part = self.where.get_submodule(path)
        if found.is_meta and not _is_aside(part):
            raise CheckpointError(f"{name!r} of {kind} is on meta: there are no weights to read")
        _check_shape(traced, name, tuple(found.shape), kind)
        return part, leaf

    def _computed(self, traced: Traced, name: str) -> Tensor:
        """A tensor that no checkpoint holds."""
        own = blank_of(traced, name)
        if not own.is_meta and name not in _saved(traced):
            return own
        known: dict[str, Tensor] | None = traced.cache.get("unsaved")
        if known is None:
            known = traced.cache["unsaved"] = _unsaved(traced.module)
        found = next((known[n] for n in _names(traced, name) if n in known), None)
        if found is None:
            raise CheckpointError(
                f"{self.where} has no {name!r}, and {type(traced.module).__name__} does not "
                "compute it: the checkpoint calls it otherwise, or is of another model. Load the "
                "model, and give it in the place of the folder"
            )
        _check_shape(traced, name, tuple(found.shape), type(traced.module).__name__)
        return found


def _present(part: nn.Module, leaf: str) -> Tensor:
    """A tensor of a module, fetched from where accelerate has put it aside."""
    found: Tensor = getattr(part, leaf)
    if not (found.is_meta and _is_aside(part)):
        return found.detach()
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    with align_module_device(part, torch.device("cpu")):
        found = getattr(part, leaf)
        return found.detach().clone()


def _is_aside(part: nn.Module) -> bool:
    from accelerate.utils import has_offloaded_params

    return bool(has_offloaded_params(part))


def _home(where: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, also of one that fxprune pruned."""
    folder = Path(where).expanduser()
    return folder if (folder / FACTS).is_file() else fetch(os.fspath(where))


def blank_of(traced: Traced, name: str) -> Tensor:
    """A tensor of a traced model, or one of the module that its graph does not read."""
    own = traced.tensors.get(name)
    return named_tensors(traced.module)[name] if own is None else own


def weights_of(
    traced: Traced,
    plan: Plan,
    small: fx.GraphModule,
    source: Source | None,
    mended: Mended | None,
) -> SmallWeights | None:
    """The weights of a graph that a plan made of a model without weights; None if it has them.

    Args:
        traced: the original.
        plan: the plan.
        small: the graph.
        source: where the original's are.
        mended: those that are to have, or have, new values.
    """
    if source is None:
        return None
    graph, resize = planned(traced, plan)
    dense = DenseWeights(graph.traced, source)
    return SmallWeights(graph, resize, small, plan.biases, dense, mended)


def tensors_of_shrunk(
    small: nn.Module, traced: Traced, plan: Plan, weights: SmallWeights
) -> Callable[[str], Tensor]:
    """What gives the tensors of a smaller model of transformers that is on ``meta``.

    Args:
        small: what :func:`fxprune.shrink` made.
        traced: the original.
        plan: the plan.
        weights: of the rewritten graph.
    """
    names = Names(shortened(traced.module, plan.removed))
    blanks = named_tensors(small)

    def tensor(name: str) -> Tensor:
        original = names.original(name)
        found = weights.read(traced.canonical(original), blanks[name])
        if found.shape != blanks[name].shape:
            part = cut(name, found.detach(), blanks[name].shape, names)
            assert part is not None, name
            found = part
        return found.detach().cpu()

    return tensor


def _saved(traced: Traced) -> set[str]:
    """What a checkpoint of the model holds: it is not taken from the model in its place."""
    known: set[str] | None = traced.cache.get("saved")
    if known is None:
        ignored = getattr(traced.module, "_keys_to_ignore_on_save", None) or ()
        known = traced.cache["saved"] = {*traced.module.state_dict()} - {*ignored}
    return known


def _unsaved(model: Any) -> dict[str, Tensor]:
    """What a class of transformers computes when it is loaded, and does the same each time."""
    if not architecture.is_transformers(model):
        return {}
    once, again = (unsaved(copy.deepcopy(model), blank) for blank in (0.0, 1.0))
    pairs = ((name, value, again[name]) for name, value in once.items())
    return {
        name: value
        for name, value, other in pairs
        if value is not None and other is not None and torch.equal(value, other)
    }


def _names(traced: Traced, name: str) -> Iterator[str]:
    """What a checkpoint may call a tensor: any of its names, with or without the model's prefix."""
    names = [name, *(alias for alias, known in traced.aliases.items() if known == name)]
    yield from names
    prefix = getattr(traced.module, "base_model_prefix", "")
    for each in names if prefix else ():
        if each.startswith(f"{prefix}."):
            yield each.removeprefix(f"{prefix}.")


def _check_shape(traced: Traced, name: str, shape: tuple[int, ...], where: str) -> None:
    wanted = tuple(blank_of(traced, name).shape)
    if shape != wanted:
        raise CheckpointError(
            f"{where}: {name!r} has shape {shape}, and the graph {wanted}: it is of another model"
        )
