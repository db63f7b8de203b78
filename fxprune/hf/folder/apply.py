"""Apply a plan to a checkpoint on disk, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fxprune.errors import CheckpointError
from fxprune.files import write_text, writing
from fxprune.groups.dependency import DependencyGraph
from fxprune.hf.folder import checkpoint, shards
from fxprune.hf.folder.conversions import converts
from fxprune.hf.folder.folders import whole
from fxprune.hf.folder.graph_folder import CONFIG, PLAN
from fxprune.hf.folder.module_folder import describe, write_config, write_module
from fxprune.hf.folder.tensors import Tensors
from fxprune.hf.folder.weights import Weights, tensors_of_shrunk, weights_of
from fxprune.hf.open import architecture, guard
from fxprune.hf.open.models import load_tokenizer
from fxprune.hf.shrink.fill import named_tensors
from fxprune.hf.shrink.rehost import acceptable
from fxprune.hf.shrink.shrink import shrink
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.hf.vocabulary.tokenizer import OTHERS, read, trimmed
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.progress import track
from fxprune.rewrite.planned import planned, sliced
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What a checkpoint has beside weights and config, such as a tokenizer.
_COPIED = {".json", ".txt", ".model", ".jinja", ".md", ".tiktoken"}


def apply(
    plan: Plan | str | os.PathLike[str],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: bool = False,
) -> Path:
    """Prune a checkpoint of transformers by a plan, without loading the model.

    Tensors are read, sliced and written one at a time, so a model far larger than memory can be
    pruned: the peak is one tensor and what stays of it. The result is what :func:`fxprune.shrink`
    and :func:`fxprune.save` give for the loaded model, in as many files as the source has; it
    appears whole or not at all. The plan may have been made on a sibling, a fine-tune of the same
    architecture.

    Args:
        plan: the plan, or its file.
        source: folder of a checkpoint in safetensors, in one file or several.
        target: the folder to write; one that fxprune wrote before is replaced.
        progress: show a progress bar.

    Returns:
        The target.

    Raises:
        PlanError: the plan is damaged or for another model.
        VocabularyError: it leaves out tokens, and the tokenizer cannot.
        ShrinkError: no config can say what the plan leaves.
        CheckpointError: the source is damaged, holds a pickle or tensors that the class has not,
            or the target exists and is something else.
    """
    source, target = Path(source), Path(target)
    if not isinstance(plan, Plan):
        plan = Plan.load(plan)
    checkpoint.check_target(target)
    files = shards.shards(source)
    held = {file: shards.names(file) for file in files}
    guard.check_config(source / CONFIG, sum(map(len, held.values())))
    blank = architecture.build(architecture.read_config(source / CONFIG))
    cut = _Cut.of(blank, plan)
    joined = converts(blank)  # then what a file holds is not what the model has
    if not joined:
        _check_names(blank, held)
    tokens = plan.tokens
    tokenizer = load_tokenizer(source) if tokens is not None else None
    if tokenizer is not None and tokens is not None:
        tokenizer = trimmed(tokenizer, tokens, read(tokenizer))
    with writing(target), whole(target, replace=True) as folder:
        _copy(source, folder)
        if tokenizer is not None:
            for name in OTHERS:
                (folder / name).unlink(missing_ok=True)
            tokenizer.save_pretrained(folder)
        if joined:
            write_module(folder, cut.small, plan, _tensors(cut.small, blank, plan, source))
            checkpoint.write_facts(folder, describe(cut.small))
            return target
        write_config(folder, cut.small)
        plan.save(folder / PLAN)
        found: dict[str, str] = {}
        size = 0
        for file in track(files, "applying the plan", progress):
            size += cut.write(file, held[file], folder / file.name)
            found |= dict.fromkeys(cut.stays(held[file]), file.name)
        if (source / guard.INDEX).is_file():
            index = {
                "metadata": {"total_size": size},
                "weight_map": dict(sorted(found.items())),
            }
            write_text(folder / guard.INDEX, json.dumps(index, indent=2) + "\n")
        checkpoint.write_facts(folder, describe(cut.small))
    return target


def _check_names(model: PreTrainedModel, held: dict[Path, list[str]]) -> None:
    known = named_tensors(model).keys()
    for file, names in held.items():
        for name in names:
            if name not in known:
                raise CheckpointError(
                    f"{file} has {name!r}, which {type(model).__name__} calls otherwise or has "
                    "not: load the model and use fxprune.shrink"
                )


def _tensors(small: PreTrainedModel, blank: PreTrainedModel, plan: Plan, source: Path) -> Tensors:
    """What gives the tensors of the smaller model, those of experts joined."""
    whole = Weights(source)
    traced = trace(blank)
    whole.check(traced)
    graph = rewrite(traced, plan)
    weights = weights_of(traced, plan, graph, whole, None)
    assert weights is not None
    return tensors_of_shrunk(small, traced, plan, weights)


def _copy(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        written = file.name in (guard.INDEX, CONFIG, PLAN, checkpoint.FACTS)
        if file.suffix in _COPIED and file.is_file() and not written:
            shutil.copyfile(file, folder / file.name)


@dataclass(frozen=True)
class _Cut:
    """What a plan does to each tensor of a checkpoint.

    Attributes:
        small: the smaller model, on ``meta``.
        graph: the groups of the model without removed blocks; None if the plan prunes none.
        resize: what becomes of their axes.
        names: from names in the smaller model to those in the whole one.
    """

    small: PreTrainedModel
    graph: DependencyGraph | None
    resize: Resizer | None
    names: Names

    @classmethod
    def of(cls, blank: PreTrainedModel, plan: Plan) -> _Cut:
        names = Names(shortened(blank, plan.removed))
        plan.check_model(blank)
        if not plan.kept:
            return cls(acceptable(shrink(blank, plan, share=True)), None, None, names)
        traced = trace(blank)
        graph, resize = planned(traced, plan)
        return cls(acceptable(shrink(blank, plan, traced=traced, share=True)), graph, resize, names)

    def stays(self, held: list[str]) -> dict[str, str]:
        """Names in the smaller model of some tensors, to those in the whole one."""
        there = {name: self.names.renamed(name) for name in held}
        return {new: name for name, new in there.items() if new is not None}

    def write(self, file: Path, held: list[str], target: Path) -> int:
        """Write what stays of a file; returns the bytes of its tensors."""
        stays = self.stays(held)
        shapes = {name: tuple(t.shape) for name, t in named_tensors(self.small).items()}
        whole = shards.blanks(file)
        kinds = {new: (whole[name].dtype, shapes[new]) for new, name in stays.items()}

        def tensor(new: str) -> torch.Tensor:
            # Opened anew, for what was read of a mapped file stays resident until it is closed.
            with shards.opened(file) as there:
                return self._sliced(stays[new], there.get_tensor(stays[new]))

        return shards.write_stream(target, kinds, tensor)

    def _sliced(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.graph is None or self.resize is None:
            return tensor
        left = sliced(self.graph, self.resize, name, tensor)
        if left is None:
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}: of another model")
        return left
