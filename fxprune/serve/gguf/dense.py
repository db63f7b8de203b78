"""GGUF files of dense models: what is taken from them, and how a plan cuts one."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from fxprune.errors import ModelError, ServeError
from fxprune.files import check_writable
from fxprune.hf.open import architecture
from fxprune.hf.open.quiet import quiet
from fxprune.plan import Plan
from fxprune.rewrite.planned import planned, sliced
from fxprune.rewrite.rewrite import rewrite
from fxprune.serve.decoder import decoder_of
from fxprune.serve.engine import Pruned, engine
from fxprune.serve.gguf import architectures, file
from fxprune.serve.gguf.architectures import Architecture
from fxprune.serve.gguf.file import Entry, Metadata
from fxprune.serve.gguf.written import Written, form_of
from fxprune.trace import trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WHOLE = {Kind.F32, Kind.F16, Kind.BF16}


def cut(
    plan: Plan | str | os.PathLike[str],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    progress: bool = False,
) -> Path:
    """Prune a GGUF file by a plan, one tensor in memory at a time.

    The plan may have been made on the transformers model that the file was made of. Values are
    those of the file, in its types: nothing is compensated.

    Args:
        plan: the plan, or its file.
        source: a GGUF of the dense model in F32, F16 or BF16.
        target: the file to write. It appears whole or not at all.
        progress: show a progress bar.

    Returns:
        The target.

    Raises:
        ServeError: the file is quantised or of an architecture that is not known, or llama.cpp
            cannot say what the plan leaves.
        PlanError: the plan is damaged or for another model.
        CheckpointError: the file cannot be written.
    """
    source, target = Path(source), Path(target)
    if not isinstance(plan, Plan):
        plan = Plan.load(plan)
    check_writable(target)
    if plan.tokens is not None:
        raise ServeError(
            "the plan leaves out tokens, and the tokenizer of a GGUF is not cut: apply it to the "
            "model's folder, and convert that"
        )
    reader = file.opened(source)
    there = {each.name: each for each in reader.tensors}
    entries = file.metadata(reader)
    blank = _model(source, entries, there)
    own = architectures.own(blank.config)
    if own is None:
        raise ServeError(f"{source}: {blank.config.model_type} is not cut without its values")
    plan.check_model(blank)
    entries = metadata_of(source, entries, own, blank.config, plan)
    traced = trace(blank)
    graph, resize = planned(traced, plan)
    engine("llama.cpp").require(plan, graph)
    decoder = decoder_of(Pruned(rewrite(traced, plan), blank.config, plan))
    form = form_of(decoder, own)
    names = gguf.get_tensor_name_map(own.code, blank.config.num_hidden_layers)

    def found(name: str) -> gguf.ReaderTensor:
        path, _, end = name.rpartition(".")
        tensor = there.get(f"{names.get_name(path)}.{end}")
        if tensor is None:
            raise ServeError(f"{source} has no {name}, which the plan's model has")
        if tensor.tensor_type not in _WHOLE and tensor.data.ndim > 1:
            raise ServeError(
                f"{source}: {tensor.name} is quantised ({tensor.tensor_type.name}), and only F32, "
                "F16 and BF16 are cut; take such a file and quantise afterwards, or prune the "
                "transformers model and give this file as --like to fxprune convert"
            )
        return tensor

    def values(name: str) -> NDArray[Any]:
        tensor = found(name)
        whole = torch.from_numpy(np.array(file.values_of(tensor)))  # the file is not writable
        left = sliced(graph, resize, name, whole)
        if left is None:
            raise ServeError(f"{source}: {tensor.name} has shape {tuple(whole.shape)}")
        return left.numpy()

    kind = found("model.layers.0.mlp.up_proj.weight").tensor_type
    written = Written(decoder, form, kind, values, paired=own.pairs)
    tensors = dict(written.tensors())
    entries = file.renamed(entries, own.name, form.name) | written.metadata()
    file.write(target, form.name, entries, tensors, kind, progress)
    return target


def _model(source: Path, entries: Metadata, there: Collection[str]) -> PreTrainedModel:
    """The architecture of a file's model, without weights.

    Raises:
        ServeError: transformers does not know it.
    """
    from transformers.models.auto.configuration_auto import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
        # What transformers leaves at its default.
        size = entries.get(f"{entries['general.architecture'].value}.attention.key_length")
        if size is not None:
            config.head_dim = size.value
        if hasattr(config, "attention_bias"):
            config.attention_bias = "blk.0.attn_q.bias" in there
        return architecture.build(config)
    except (ValueError, KeyError, OSError, NotImplementedError, ModelError) as error:
        raise ServeError(f"{source}: transformers makes no model of it: {error}") from error


def metadata_of(
    like: str | os.PathLike[str],
    entries: Metadata,
    own: Architecture,
    config: Any,
    plan: Plan | None,
) -> Metadata:
    """The metadata of a dense model's file, but for what says its size.

    Args:
        like: the file, for messages.
        entries: all its metadata.
        own: the architecture that it must have.
        config: of the model, dense or pruned.
        plan: what was pruned, whose sizes of the dense model the file must have.

    Raises:
        ServeError: it is of another model.
    """
    found = entries.get("general.architecture", Entry(None, gguf.GGUFValueType.STRING)).value
    if found != own.name:
        raise ServeError(f"{like} is of the architecture {found}, and the model is {own.name}")
    expected = {
        "rope.freq_base": architectures.rope(config)["rope_theta"],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    shapes = {} if plan is None else plan.shapes
    for key, name, axis in (
        ("embedding_length", "model.embed_tokens", 1),
        ("feed_forward_length", "model.layers.0.mlp.up_proj", 0),
    ):
        if f"{name}.weight" in shapes:
            expected[key] = shapes[f"{name}.weight"][axis]
    if shapes:
        numbers = (name.split(".")[2] for name in shapes if name.startswith("model.layers."))
        expected["block_count"] = len(set(numbers))
    check_same(like, entries, own.name, expected)
    tokens = entries.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens.value) > config.vocab_size:
        raise ServeError(f"{like} has {len(tokens.value)} tokens, the model {config.vocab_size}")
    return {key: each for key, each in entries.items() if key != "general.size_label"}


def check_same(
    like: str | os.PathLike[str], entries: Metadata, name: str, expected: Mapping[str, Any]
) -> None:
    """Refuse a file that says otherwise of a model than its config does.

    Args:
        like: the file, for messages.
        entries: all its metadata.
        name: of its architecture.
        expected: by key without the architecture; None is not compared.

    Raises:
        ServeError: something differs.
    """
    for key, value in expected.items():
        there = entries.get(f"{name}.{key}")
        if there is None or value is None:
            continue
        if not np.isclose(there.value, value, rtol=1e-5):
            raise ServeError(f"{like} is of another model: {key} is {there.value}, here {value}")
