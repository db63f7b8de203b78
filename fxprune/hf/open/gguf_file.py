"""A GGUF file as a checkpoint of transformers, which is made of it once, tensor by tensor.

What a tensor is called in transformers, and in which order llama.cpp keeps its rows, is what
transformers' own reader of GGUF files knows; here it is asked for one tensor at a time, so that
files that exceed the memory can be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import FxpruneWarning, ModelError
from fxprune.hf.folder.shards import WEIGHTS, write_stream
from fxprune.hf.open.architecture import build, last_line, model_class
from fxprune.hf.open.cache import cache_dir, in_cache
from fxprune.hf.open.quiet import quiet
from fxprune.progress import step

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PreTrainedConfig

# What transformers takes the default of its config for.
_SIZES = {
    "head_dim": "attention.key_length",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_FACTORS, _SCALING, _FACTOR = "rope_freqs.weight", "rope.scaling.type", "rope.scaling.factor"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}  # all else becomes float32


def folder(file: Path) -> Path:
    """The checkpoint of a file, in the cache; made on the first call.

    Raises:
        ModelError: the file cannot be read, or is of a model that transformers does not read.
    """
    facts = file.stat()
    told = f"{file.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()
    done = cache_dir() / f"gguf-{file.stem}-{hashlib.sha256(told).hexdigest()[:8]}"
    if not (done / "config.json").is_file():
        with step(f"reading {file.name}, once", True), in_cache(done, replace=False) as made:
            convert(file, made)
    return done


def config_of(file: Path) -> PreTrainedConfig:
    """The config that the header of a file tells.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers.models.auto import AutoConfig

    with _reading(file):
        config: PreTrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        reader = _opened(file)
        config.dtype = _dtype(reader)
        for name, key in _SIZES.items():
            size = _entry(reader, key)
            if size is not None and hasattr(config, name):
                setattr(config, name, int(size))
        if _entry(reader, _SCALING) == "linear" and _default_rope(config):
            linear = {"rope_type": "linear", "factor": float(_entry(reader, _FACTOR))}
            config.rope_parameters = {**config.rope_parameters, **linear}
    config.architectures = [model_class(config).__name__]
    vars(config).pop("_model_name_or_path", None)  # the model's own name, and not a place
    config._name_or_path = ""
    return config


def convert(file: Path, target: Path) -> None:
    """Write a checkpoint: config, tokenizer, and the weights of a file, dequantised.

    They are of the dtype of most matrices if that is F16 or BF16, and else float32.

    Raises:
        ModelError: the file cannot be read, or is of a model that transformers does not read.
    """
    from transformers.models.auto import AutoTokenizer

    config = config_of(file)
    model: Any = build(config)
    with _reading(file):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        reader = _opened(file)
        tensors, unread = _tensors(file, reader, model)
        scaled = _entry(reader, _SCALING) not in (None, "none")
        unread += [_SCALING] * (scaled and _default_rope(config))
    _check_read(file, unread)
    blanks = model.state_dict(keep_vars=True)
    held = {id(blanks[name]) for name in tensors}  # tied ones are stored once
    if all(id(blank) in held for blank in blanks.values()):
        kinds = {name: (blanks[name].dtype, tuple(blanks[name].shape)) for name in tensors}
        with _reading(file):
            write_stream(target / WEIGHTS, kinds, lambda name: tensors[name]().to(kinds[name][0]))
    else:  # some are made of several tensors, which takes the whole model in memory
        _whole(file, config).save_pretrained(target)
    config.save_pretrained(target)
    if model.can_generate():
        model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _whole(file: Path, config: PreTrainedConfig) -> Any:
    """The model as transformers reads the file, but one that it does not refuse to save.

    Raises:
        ModelError: the file lacks a tensor.
    """
    cls = model_class(config)
    with _reading(file):
        loaded, info = cls.from_pretrained(
            file.parent,
            config=config,
            gguf_file=file.name,
            dtype=config.dtype,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{file} has no tensor for {missing[0]}, or transformers does not know it")
    made = cls(config).to(config.dtype)
    made.load_state_dict(loaded.state_dict())
    return made


def _tensors(
    file: Path, reader: GGUFReader, model: Any
) -> tuple[dict[str, Callable[[], torch.Tensor]], list[str]]:
    """What reads each tensor that is one of the file's, by its name in transformers.

    And the names of the tensors that transformers does not read.
    """
    import numpy as np
    from gguf import dequantize
    from transformers import modeling_gguf_pytorch_utils as known

    facts = known.load_gguf_checkpoint(file)  # type: ignore[no-untyped-call]
    processor: Any = known.TENSOR_PROCESSORS.get(_kind(reader), known.TensorProcessor)
    processor = processor(config=facts["config"])
    names = known.get_gguf_hf_weights_map(model, processor)

    def read(tensor: ReaderTensor) -> torch.Tensor:
        values = dequantize(tensor.data, tensor.tensor_type)
        given: dict[str, Any] = {"tensor_key_mapping": names, "parsed_parameters": facts}
        found = processor.process(weights=values, name=tensor.name, **given)
        return torch.from_numpy(np.array(found.weights))

    there = {each.name: each for each in reader.tensors}
    # What becomes a part of a tensor goes by the name of the whole.
    unread = [n for n in there if n not in names and n.removesuffix(".weight") not in names]
    found: dict[str, Callable[[], torch.Tensor]]
    found = {names[n]: partial(read, each) for n, each in there.items() if n in names}
    return found, unread


def _check_read(file: Path, unread: list[str]) -> None:
    """Warn of what transformers leaves out, or refuse a model that would be another without it.

    Raises:
        ModelError: it would.
    """
    if other := [name for name in unread if name not in (_FACTORS, _SCALING)]:
        raise ModelError(f"{file}: transformers does not read its {other[0]}")
    if unread:
        warnings.warn(
            f"{file.name}: transformers does not read {unread[0]}, so it takes positions otherwise "
            "than llama.cpp does; take the model's own checkpoint if there is one",
            FxpruneWarning,
            stacklevel=4,
        )


def _dtype(reader: GGUFReader) -> torch.dtype:
    """The dtype of most values in a file; float32 if they are quantised."""
    values: Counter[str] = Counter()
    for each in reader.tensors:
        values[each.tensor_type.name] += int(each.n_elements)
    return _DTYPES.get(values.most_common(1)[0][0], torch.float32)


def _entry(reader: GGUFReader, key: str) -> Any:
    """A value of the header; None if there is none."""
    found = reader.fields.get(f"{_kind(reader)}.{key}")
    return None if found is None else found.contents()


def _default_rope(config: PreTrainedConfig) -> bool:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "default"


def _kind(reader: GGUFReader) -> str:
    return str(reader.fields["general.architecture"].contents())


def _opened(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    return GGUFReader(file)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Errors of libraries as ours.

    Raises:
        ModelError: there was one.
    """
    try:
        with quiet():
            yield
    except ImportError as error:
        raise ModelError("reading a GGUF file needs the package gguf: pip install gguf") from error
    except Exception as error:  # damaged files, architectures that are not known, ...
        raise ModelError(f"{file} cannot be read: {last_line(error)}") from error
