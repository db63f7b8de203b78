"""Transformers models in a folder that plain transformers loads.

Where layers have sizes of their own, transformers' classes cannot build the model yet. Then the
folder has a small file of code as well, which ``from_pretrained(folder, trust_remote_code=True)``
runs. Without that, a stock class refuses the config rather than build another model.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxprune.errors import CheckpointError, ModelError
from fxprune.files import write_text
from fxprune.hf.folder import shards
from fxprune.hf.folder.conversions import Reverted
from fxprune.hf.folder.graph_folder import CONFIG, PLAN
from fxprune.hf.folder.tensors import Tensors
from fxprune.hf.open import architecture, guard
from fxprune.hf.open.quiet import quiet
from fxprune.hf.shrink import layers_apart
from fxprune.hf.shrink.fill import differences, misfit, named_tensors
from fxprune.hf.shrink.parts import stacks_apart, uneven
from fxprune.hf.shrink.rehost import acceptable
from fxprune.hf.shrink.stacks import Names
from fxprune.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOADER = "modeling_fxprune"


def write_module(
    folder: Path, model: PreTrainedModel, plan: Plan | None, tensors: Tensors | None = None
) -> dict[str, Any]:
    """Write a model's files into a folder, and prove that its config gives these shapes again.

    Args:
        folder: where.
        model: with its weights.
        plan: kept beside them, if there is one.
        tensors: gives each tensor by its name in the model, where that has no weights.

    Returns:
        What :func:`read_module` needs to know besides.

    Raises:
        CheckpointError: the weights are on ``meta``, or no class of transformers takes the config.
        ModelError: it cannot be told of which list of layers the config speaks.
    """
    blank = [name for name, t in named_tensors(model).items() if t.is_meta]
    if blank and tensors is None:
        raise CheckpointError(f"{blank[0]!r} is on meta: a model without weights cannot be saved")
    model = acceptable(model)
    with quiet():
        # transformers renames the tensors of old checkpoints for its own classes alone.
        apart = describe(model)["stack"] is not None
        if tensors is None:
            model.save_pretrained(folder, save_original_format=not apart)
        else:
            _write_tensors(folder, model, tensors, apart)
    write_config(folder, model)
    if plan is not None:
        plan.save(folder / PLAN)
    return describe(model)


def _write_tensors(folder: Path, model: PreTrainedModel, tensors: Tensors, apart: bool) -> None:
    """What ``save_pretrained`` writes, one tensor at a time, or those that are cut or joined."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = model._keys_to_ignore_on_save or ()
    state = {name: x for name, x in model.state_dict().items() if name not in ignored}
    state = remove_tied_weights_from_state_dict(state, model)
    if not apart:
        reverted = Reverted(model, state, tensors)
        state, tensors = reverted.state, reverted
    most = inspect.signature(model.save_pretrained).parameters["max_shard_size"].default
    pattern = shards.WEIGHTS.replace(".", "{suffix}.")
    split = split_torch_state_dict_into_shards(state, filename_pattern=pattern, max_shard_size=most)
    for file, names in split.filename_to_tensors.items():
        kinds = {name: (state[name].dtype, tuple(state[name].shape)) for name in names}
        shards.write_stream(folder / file, kinds, tensors)
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        write_text(folder / guard.INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """What :func:`read_module` needs to know besides the files of transformers."""
    attention = model.config._attn_implementation
    named = {"class": type(model).__name__, "attn_implementation": attention}
    stacks = {} if not uneven(model.config) or _reads(model) else stacks_apart(model)
    return {"holds": "module", "model": named, "stack": stacks or None}


def how_to_open(folder: Path, model: PreTrainedModel) -> str:
    """How to open what :func:`write_module` wrote, in words."""
    remote = ", trust_remote_code=True" if describe(model)["stack"] is not None else ""
    shown = repr(str(folder))
    return f"open it with fxprune.load({shown}) or from_pretrained({shown}{remote})"


def _reads(model: PreTrainedModel) -> bool:
    """Whether the class reads entries for single layers itself, as some do."""
    name = type(model).__name__
    try:
        own = architecture.build(model.config, architecture=name, apart=False)
    except ModelError:
        return False
    unlike = differences(model, own, Names(()), ())
    return not misfit(own, named_tensors(model), Names(())) and not any(unlike)


def write_config(folder: Path, model: PreTrainedModel) -> None:
    """Write the config, and the code where layers differ; prove that they give these shapes.

    Raises:
        CheckpointError: they would give another model.
    """
    facts = describe(model)
    with quiet():
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.dtype = model.dtype
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
    if facts["stack"] is not None:
        add_loader(folder, model, facts["stack"])
    if wrong := misfit(_built(folder, facts), named_tensors(model), Names(())):
        raise CheckpointError(f"the saved config would give another model: {wrong}")


def add_loader(folder: Path, model: PreTrainedModel, stacks: dict[str, list[str]]) -> None:
    """Write the code that builds layers of their own sizes, and name it in the config.

    What the model adds its head to has a class there too: vLLM asks for ``AutoModel``.
    """
    code = Path(layers_apart.__file__).read_text(encoding="utf-8")
    code = code.replace(
        "from typing import Any\n", "from typing import Any\n\nimport transformers\n"
    )
    names: dict[str, str] = {}
    for cls, inside in _classes(model, stacks):
        name = cls.__name__
        code += f"\n\n{name} = apart(transformers.{name}, {inside!r})\n"
        names |= dict.fromkeys(_auto_classes(cls), f"{LOADER}.{name}")
    write_text(folder / f"{LOADER}.py", code)
    file = folder / CONFIG
    data = json.loads(file.read_text(encoding="utf-8"))
    data["auto_map"] = names
    write_text(file, json.dumps(data, indent=2) + "\n")


def _classes(
    model: PreTrainedModel, stacks: dict[str, list[str]]
) -> Iterator[tuple[type[PreTrainedModel], dict[str, list[str]]]]:
    """The class of what a model adds its head to, and its own; with the lists of layers in each."""
    base: Any = model.base_model
    before = f"{model.base_model_prefix}."
    if _auto_classes(type(base)) and all(path.startswith(before) for path in stacks):
        yield type(base), {path.removeprefix(before): part for path, part in stacks.items()}
    yield type(model), stacks


def read_module(path: Path, facts: dict[str, Any], device: str | torch.device) -> PreTrainedModel:
    """The model, without running any code of the folder.

    Raises:
        CheckpointError: a file is damaged or of another model.
    """
    _check_config(path)
    cls = _class(path, facts)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                path,
                dtype="auto",
                attn_implementation=facts["model"].get("attn_implementation"),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a damaged file or a model's constructor may raise
        why = architecture.last_line(error)
        raise CheckpointError(f"{path} cannot be loaded: {why}; copy or save it again") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise CheckpointError(f"{path}: {what.replace('_', ' ')}: {sorted(info[what])[0]}")
    made: PreTrainedModel = model.to(device)
    return made


def blank_module(path: Path, facts: dict[str, Any]) -> PreTrainedModel:
    """The model without weights, on ``meta``, in evaluation mode.

    Raises:
        CheckpointError: the config is damaged.
    """
    _check_config(path)
    model: Any = _built(path, facts)
    blank: PreTrainedModel = model.eval()
    return blank


def _built(path: Path, facts: dict[str, Any]) -> PreTrainedModel:
    cls = _class(path, facts)
    with quiet(), torch.device("meta"):
        built: PreTrainedModel = cls._from_config(architecture.read_config(path / CONFIG))
    return built


def _check_config(path: Path) -> None:
    count = sum(len(shards.names(file)) for file in sorted(path.glob("*.safetensors")))
    guard.check_config(path / CONFIG, count)


def _class(path: Path, facts: dict[str, Any]) -> Any:
    """The class that builds the model."""
    stacks = facts.get("stack")
    if isinstance(stacks, str):  # as older versions wrote it
        stacks = {stacks: []}
    try:
        config = architecture.read_config(path / CONFIG)
        cls = architecture.model_class(config, facts["model"].get("class"))
    except ModelError as error:
        raise CheckpointError(f"{path} cannot be rebuilt: {error}") from error
    return layers_apart.apart(cls, stacks) if isinstance(stacks, dict) else cls


def _auto_classes(cls: type[PreTrainedModel]) -> list[str]:
    """The auto classes of transformers that give a class."""
    from transformers.models.auto import modeling_auto

    config: Any = cls.config_class
    found = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None) if isinstance(auto, type) else None
        if mapping is None or config not in mapping:
            continue
        held = mapping[config]
        # By name: a model that was loaded with layers of their own sizes is of a subclass.
        if cls.__name__ in {
            x.__name__ for x in (held if isinstance(held, tuple | list) else [held])
        }:
            found.append(name)
    return found
