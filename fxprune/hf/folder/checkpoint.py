"""Pruned models on disk: a folder of safetensors and JSON, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.errors import CheckpointError
from fxprune.files import check_room, check_writable, writing
from fxprune.hf.folder.folders import taken, whole
from fxprune.hf.folder.graph_folder import CONFIG, PLAN, read_graph, write_graph
from fxprune.hf.folder.module_folder import read_module, write_module
from fxprune.hf.folder.tensors import Tensors
from fxprune.hf.open import guard
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fxprune.trace import Traced

FACTS = "fxprune.json"
VERSION = 2


def save(
    model: fx.GraphModule | PreTrainedModel,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    traced: Traced | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tensors: Tensors | None = None,
    within: Path | None = None,
) -> Path:
    """Write a pruned model as a folder.

    A transformers model, such as :func:`fxprune.shrink` gives, becomes a checkpoint of
    transformers. If all its layers are alike, ``AutoModelForCausalLM.from_pretrained`` loads it
    where fxprune is not installed. (A number of heads that LlamaConfig refuses is saved as Mistral,
    which computes the same.) If they are not, the config holds transformers' ``per_layer_config``,
    and ``trust_remote_code=True`` loads it by a small file of code that is saved along; a stock
    class refuses it. A graph is saved so that :func:`load` makes it again.

    The folder appears whole or not at all. One that fxprune wrote before is replaced.

    Args:
        model: a transformers model, or what :func:`fxprune.rewrite` made of ``traced`` and
            ``plan``. Either may have been trained since.
        path: the folder to write.
        plan: the plan. A transformers model is saved without as well.
        traced: for a graph, the original. Only its architecture and example inputs are needed, not
            its weights.
        tokenizer: saved along with the model.
        tensors: for a model on ``meta``, gives each tensor by its name there; they are written one
            at a time.
        within: a folder beside it, in which it is filled; by default one of its own.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder exists and is something else; the tensors are on ``meta``; an
            example input is of a type that JSON cannot hold; or no class takes the config.
    """
    path = Path(path)
    check_target(path)
    if isinstance(model, fx.GraphModule):
        if plan is None or traced is None:
            raise CheckpointError("a graph is saved with what it was made of: give plan and traced")
    elif not hasattr(model, "save_pretrained"):
        raise CheckpointError(
            f"{type(model).__name__} is neither a GraphModule nor a transformers model"
        )
    if tensors is not None:
        check_room(path, sum(each.nbytes for each in model.state_dict().values()), "the model")
    with writing(path), whole(path, replace=True, within=within) as folder:
        if isinstance(model, fx.GraphModule):
            assert plan is not None
            assert traced is not None
            held = write_graph(folder, model, plan, traced, tensors)
        else:
            held = write_module(folder, model, plan, tensors)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_facts(folder, held)
    return path


def write_facts(folder: Path, held: dict[str, Any]) -> None:
    """Write what :func:`load` needs to know, once everything else is there.

    Args:
        folder: which holds the other files.
        held: what its kind of content says about itself.
    """
    sums = {
        file.name: _sha256(file)
        for file in sorted(folder.iterdir())
        if file.suffix == ".safetensors" or file.name in (PLAN, CONFIG)
    }
    facts = {"format": "fxprune", "version": VERSION, **held, "sha256": sums}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: str | torch.device = "cpu",
) -> fx.GraphModule | PreTrainedModel:
    """Read a folder that :func:`save` wrote. The outputs are bit-equal to those of what was saved.

    No code of the folder runs.

    Args:
        path: the folder.
        model: for the graph of a model that is not of transformers, the original architecture. Its
            weights are not used, so it may be built under ``torch.device("meta")``. It is not
            changed.
        device: where the tensors go.

    Returns:
        The graph or the transformers model, whichever was saved, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged or of another model; the message names it.
    """
    path = Path(path)
    facts = facts_of(path)
    guard.check_folder(path)
    guard.check_names(facts["sha256"], path / FACTS)
    for name, expected in facts["sha256"].items():
        _intact(path / name, expected)
    if facts.get("holds", "graph") == "module":
        return read_module(path, facts, device)
    return read_graph(path, facts, model, device)


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse to overwrite a folder that fxprune did not write, or one that cannot be written.

    Raises:
        CheckpointError: the path exists and is neither empty nor a saved model, or nothing can be
            written there.
    """
    path = Path(path)
    check_writable(path)
    if taken(path) and not (path / FACTS).is_file():
        raise CheckpointError(
            f"{path} exists and was not written by fxprune: it is left alone; give another folder"
        )


def facts_of(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote down about a folder.

    Raises:
        CheckpointError: it wrote none, or the file is damaged.
    """
    file = path / FACTS
    if not path.is_dir():
        raise CheckpointError(f"no folder {path}")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {path} is not a folder written by fxprune")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error
    fields = {"version": int, "model": dict, "sha256": dict}
    if not isinstance(facts, dict) or facts.get("format") != "fxprune":
        raise CheckpointError(f"{file} is not of fxprune")
    if facts.get("holds") == "engine":
        raise CheckpointError(
            f"{path} was written for the engine {facts.get('engine')}, which runs it; fxprune "
            "reads the folder that it was converted from"
        )
    if facts.get("holds", "graph") == "graph":
        fields |= {"inputs": dict, "aliases": dict}
    for name, kind in fields.items():
        if not isinstance(facts.get(name), kind):
            raise CheckpointError(f"{file} is damaged (no {name}); copy or save it again")
    if facts["version"] > VERSION:
        raise CheckpointError(f"{file} has version {facts['version']}: a newer fxprune wrote it")
    made: dict[str, Any] = facts
    return made


def _intact(file: Path, expected: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy or save the folder again")
    if _sha256(file) != expected:
        raise CheckpointError(
            f"{file} is damaged: it is not the file that was saved; copy or save the folder again"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
