"""Pruned graphs on disk: a folder of safetensors and JSON, never a pickle.

A graph is not stored. The folder holds what is needed to make it again: the config, the shapes of
the example inputs, the plan and the tensors. Loading builds the original architecture on ``meta``,
traces it, rewrites it by the plan and puts the tensors in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxprune.errors import CheckpointError, FxpruneError
from fxprune.hf import architecture, example
from fxprune.hf.folders import whole
from fxprune.hf.tensors import assign, read, tensors_of, write
from fxprune.plan import Plan
from fxprune.trace import trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fxprune.trace import Traced

FACTS, PLAN, TENSORS, CONFIG = "fxprune.json", "plan.json", "model.safetensors", "config.json"
VERSION = 1


def save(
    path: str | os.PathLike[str],
    graph_module: fx.GraphModule,
    plan: Plan,
    traced: Traced,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a pruned graph as a folder.

    The folder appears whole or not at all. One that fxprune wrote before is replaced.

    Args:
        path: the folder to write.
        graph_module: what :func:`fxprune.rewrite` made of ``traced`` and ``plan``; it may have been
            trained since.
        plan: the plan.
        traced: the original. Only its architecture and example inputs are needed, not its weights.
        tokenizer: saved along with the model.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder exists and is something else, the tensors are on ``meta``, or
            an example input is of a type that JSON cannot hold.
    """
    path = Path(path)
    check_target(path)
    if blank := [name for name, t in tensors_of(graph_module).items() if t.is_meta]:
        raise CheckpointError(f"{blank[0]!r} is on meta: a graph without weights cannot be saved")
    facts: dict[str, Any] = {
        "format": "fxprune",
        "version": VERSION,
        "model": _describe(traced.module),
        "inputs": example.describe(traced.args, traced.kwargs),
    }
    try:
        with whole(path, replace=True) as folder:
            plan.save(folder / PLAN)
            facts["aliases"] = write(graph_module, folder / TENSORS)
            # safetensors makes the file private to its user; it should be as the others are.
            shutil.copymode(folder / PLAN, folder / TENSORS)
            if _is_transformers(traced.module):
                config: Any = traced.module.config
                config.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            names = [name for name in (PLAN, TENSORS, CONFIG) if (folder / name).is_file()]
            facts["sha256"] = {name: _sha256(folder / name) for name in names}
            (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    device: str | torch.device = "cpu",
) -> fx.GraphModule:
    """Read a folder that :func:`save` wrote. The outputs are bit-equal to those of what was saved.

    Args:
        path: the folder.
        model: the original architecture, for a model that is not of transformers; its weights are
            not used, so it may be built under ``torch.device("meta")``. It is not changed.
        device: where the tensors go.

    Raises:
        CheckpointError: a file is missing, damaged or of another model; the message names it.
    """
    path = Path(path)
    facts = _facts(path)
    for name, expected in facts["sha256"].items():
        _intact(path / name, expected)
    tensors = read(path / TENSORS, device)
    try:
        plan = Plan.load(path / PLAN)
        if model is None:
            model = _rebuild(path, facts["model"], tensors)
        args, kwargs = example.make(facts["inputs"], model)
        from fxprune.rewrite.rewrite import rewrite

        small = rewrite(trace(model, args, kwargs), plan)
    except CheckpointError:
        raise
    except FxpruneError as error:
        raise CheckpointError(f"{path} cannot be rebuilt: {error}") from error
    aliases: dict[str, str] = facts["aliases"]
    tensors |= {name: tensors[same] for name, same in aliases.items() if same in tensors}
    assign(small, tensors, path / TENSORS)
    return small


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse to overwrite a folder that fxprune did not write.

    Raises:
        CheckpointError: the path exists and is neither empty nor a saved graph.
    """
    path = Path(path)
    if not path.exists() or (path / FACTS).is_file():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise CheckpointError(
            f"{path} exists and was not written by fxprune: it is left alone; give another folder"
        )


def _facts(path: Path) -> dict[str, Any]:
    file = path / FACTS
    if not path.is_dir():
        raise CheckpointError(f"no folder {path}")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: {path} is not a folder written by fxprune")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); copy or save it again") from error
    fields = {"version": int, "model": dict, "inputs": dict, "aliases": dict, "sha256": dict}
    if not isinstance(facts, dict) or facts.get("format") != "fxprune":
        raise CheckpointError(f"{file} is not of fxprune")
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


def _describe(module: nn.Module) -> dict[str, Any]:
    if not _is_transformers(module):
        return {"library": None, "class": type(module).__qualname__}
    config: Any = module.config
    return {
        "library": "transformers",
        "class": type(module).__name__,
        "attn_implementation": config._attn_implementation,
    }


def _rebuild(path: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The original architecture on ``meta``, in the dtypes that the tensors have."""
    if facts.get("library") != "transformers":
        raise CheckpointError(
            f"{path} holds a pruned {facts.get('class')}, which is not a transformers model: build "
            "the original (on meta is enough) and pass it, load(path, model=...)"
        )
    model = architecture.build(
        architecture.read_config(path / CONFIG),
        architecture=facts.get("class"),
        attn_implementation=facts.get("attn_implementation"),
    )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
    return model


def _is_transformers(module: nn.Module) -> bool:
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return False
    return isinstance(module, PreTrainedModel)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
