"""From what a user types (a folder, a hub name, a GGUF file, ``smollm2``, ...) to a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from fxprune.errors import ModelError
from fxprune.hf.open import gguf_file, hub, smollm2
from fxprune.hf.open.architecture import build, last_line, model_class, read_config
from fxprune.hf.open.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


_FILES = (".json", ".gguf")


@dataclass(frozen=True)
class Source:
    """Where a model comes from."""

    kind: Literal["folder", "config", "gguf", "hub", "smollm2"]
    location: str


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, its tokenizer if it has one, its config and a short name."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    config: PreTrainedConfig
    name: str


def resolve(spec: str | Path) -> Source:
    """Tell what a model argument means; nothing is loaded yet.

    Args:
        spec: a local folder, a ``config.json``, a GGUF file, a name on the hub, or ``smollm2``.

    Raises:
        ModelError: no such file, or a folder without a model in it.
    """
    text = str(spec)
    if text == "smollm2":
        return Source("smollm2", text)
    path = Path(text).expanduser()
    if path.is_dir():
        if not _is_stock(path):
            raise ModelError(
                f"{path} holds a pruned model that is not a stock checkpoint; open it with "
                f"fxprune.load({text!r})"
            )
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} is not a model folder: it has no config.json. "
                "Give a folder written by save_pretrained"
            )
        return Source("folder", str(path))
    if path.is_file():
        if path.suffix not in _FILES:
            raise ModelError(
                f"{path} is not a model: give its folder, or its config.json to go without weights"
            )
        return Source("gguf" if path.suffix == ".gguf" else "config", str(path))
    looks_local = path.is_absolute() or text.startswith((".", "~")) or path.suffix in _FILES
    if looks_local or text.count("/") > 1 or "\\" in text:
        raise ModelError(
            f"no such file or folder: {text!r}. MODEL is a local folder, a config.json, "
            "a GGUF file, a hub name such as org/name, or smollm2"
        )
    return Source("hub", text)


def _is_stock(path: Path) -> bool:
    """Whether a folder is a checkpoint that a class of transformers loads by itself."""
    facts = path / "fxprune.json"
    try:
        held = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else None
    except ValueError:
        return False
    return held is None or (held.get("holds") == "module" and not held.get("stack"))


def load_model(
    spec: str | Path,
    *,
    meta: bool = False,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> LoadedModel:
    """Load a model, or build it without weights.

    Args:
        spec: see :func:`resolve`. A ``config.json`` always gives a model without weights.
        meta: build the model from its config on the ``meta`` device, without weights.
        dtype: of the weights; by default what the checkpoint says.
        attn_implementation: ``eager``, ``sdpa``, ...; by default transformers' own choice.

    Raises:
        ModelError: the model cannot be found, fetched, read or built; the message says what to do.
    """
    source = resolve(spec)
    options: dict[str, Any] = {}
    if dtype is not None:
        options["dtype"] = dtype
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    name = Path(source.location).resolve().name if source.kind == "folder" else source.location
    if source.kind == "gguf":
        name = Path(source.location).stem
    if source.kind == "config":
        name = Path(source.location).resolve().parent.name
    if meta or source.kind == "config":
        config = load_config(spec)
        return LoadedModel(build(config, **options), None, config, name)
    folder = fetch(spec)
    config = read_config(folder / "config.json")
    return LoadedModel(_pretrained(folder, config, options), load_tokenizer(folder), config, name)


def fetch(spec: str | Path) -> Path:
    """The local folder of a model with weights; downloaded, with progress, where it is not here.

    Raises:
        ModelError: it cannot be found or fetched, or is a ``config.json``.
    """
    source = resolve(spec)
    if source.kind == "config":
        raise ModelError(f"{spec} has no weights; give the folder it came from")
    if source.kind == "smollm2":
        return smollm2.folder()
    if source.kind == "gguf":
        return gguf_file.folder(Path(source.location))
    if source.kind == "hub":
        return hub.fetch(source.location, weights=True)
    return Path(source.location)


def load_config(spec: str | Path) -> PreTrainedConfig:
    """The config of a model; its weights are not fetched.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    source = resolve(spec)
    if source.kind == "gguf":
        return gguf_file.config_of(Path(source.location))
    return smollm2.config() if source.kind == "smollm2" else read_config(_config_file(source))


def _config_file(source: Source) -> Path:
    if source.kind == "config":
        return Path(source.location)
    if source.kind == "hub":
        return hub.fetch(source.location, weights=False) / "config.json"
    return Path(source.location, "config.json")


def _pretrained(folder: Path, config: PreTrainedConfig, options: dict[str, Any]) -> nn.Module:
    cls = model_class(config)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors weights; save the model there with save_pretrained "
            "(pickled weights are not read)"
        )
    try:
        with quiet():
            model, info = cls.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as error:  # damaged files, other shapes, unknown backends, ...
        raise ModelError(f"{folder} cannot be loaded: {last_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} of the weights of {cls.__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
        )
    loaded: nn.Module = model.eval()
    return loaded


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, None where there is none.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers.models.auto import AutoTokenizer

    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        return None
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # damaged files, packages that are not there, ...
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {last_line(error)}"
        ) from error
    return tokenizer
