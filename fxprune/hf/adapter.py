"""A LoRA adapter that was trained on the dense model, cut to fit the pruned one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from fxprune.axes.dims import Layout
from fxprune.errors import CheckpointError, ShrinkError
from fxprune.groups.dependency import DependencyGraph
from fxprune.hf.folder.adapter_folder import Factors, factors_of, read, write
from fxprune.hf.folder.folders import taken
from fxprune.hf.open import architecture
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.rewrite.planned import planned
from fxprune.trace import Traced, trace

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Options by which an adapted layer computes something else than W + scale * B A.
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config",
    "layer_replication", "target_parameters", "modules_to_save", "trainable_token_indices",
)  # fmt: skip
# Starting values of the factors that leave the dense weights as they are.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def shrink_adapter(
    adapter: PeftModel | str | os.PathLike[str],
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    model: PreTrainedModel | None = None,
    traced: Traced | None = None,
) -> Path:
    """Cut a LoRA adapter as the plan cuts the model that it was trained on.

    Of each adapted layer, ``lora_A`` (rank, inputs) loses the columns of pruned inputs and
    ``lora_B`` (outputs, rank) the rows of pruned outputs, so that merging commutes with pruning:
    the result on the pruned model computes what pruning the merged dense model gives. (But what
    compensation measured, it measured without the adapter.) Adapters of removed blocks are
    dropped, and later layers renumbered as :func:`fxprune.shrink` does. Ranks and scales stay.

    Args:
        adapter: the adapter: a ``PeftModel``, whose active adapter is taken, or a folder with
            ``adapter_config.json`` and ``adapter_model.safetensors``.
        plan: a plan for the dense model.
        path: the folder to write. It appears whole or not at all.
        model: the dense model, if ``adapter`` is a folder. Only its config is read.
        traced: the dense model as :func:`fxprune.trace` gives it, instead of ``model``; it saves
            tracing.

    Returns:
        The folder, for ``PeftModel.from_pretrained(fxprune.shrink(model, plan), folder)``.

    Raises:
        ShrinkError: the adapter is not plain LoRA of linear layers (DoRA, embeddings, trained
            copies of modules, PiSSA), or all that it adapts is removed.
        CheckpointError: a file is missing or damaged, the adapter is for another model, or
            ``path`` exists.
        PlanError: the plan is for another model.
    """
    path = Path(path)
    if taken(path):
        raise CheckpointError(f"{path} exists: it is left alone; give another folder")
    with tempfile.TemporaryDirectory() as scratch:
        if not isinstance(adapter, str | os.PathLike):
            model = model or cast("PreTrainedModel", adapter.get_base_model())
            adapter = _saved(adapter, Path(scratch))
        config, tensors = read(Path(adapter))
        _check(config)
        found = factors_of(Path(adapter), tensors)
    cutter = _cutter(plan, model, traced)
    small = {name: cutter.cut(name, factors) for name, factors in found.items()}
    placed = {new: (old, small[old]) for old in small if (new := cutter.names.renamed(old))}
    if not placed:
        raise ShrinkError("the plan removes every layer that the adapter adapts")
    if cutter.names.stacks:
        config |= _renamed(config, {new: old for new, (old, _) in placed.items()}, found)
    config |= {"base_model_name_or_path": None, "revision": None, "init_lora_weights": True}
    write(path, config, {new: factors for new, (_, factors) in placed.items()})
    return path


def _saved(adapter: PeftModel, folder: Path) -> Path:
    name = adapter.active_adapter
    if not isinstance(name, str):
        raise ShrinkError(f"several adapters are active ({', '.join(name)}): set one")
    adapter.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    return folder if name == "default" else folder / name


def _check(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ShrinkError(f"the adapter is {config.get('peft_type')}, and only LORA can be cut")
    if other := [name for name in _VARIANTS if config.get(name)]:
        raise ShrinkError(f"the adapter is not plain LoRA ({other[0]}): it cannot be cut")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise ShrinkError(
            f"PEFT changes the dense weights when it starts this adapter ({start}): convert it to "
            "plain LoRA first (path_initial_model_for_weight_conversion of save_pretrained)"
        )


@dataclass(frozen=True)
class _Cutter:
    """The pruned axes of every adapted layer."""

    graph: DependencyGraph
    resize: Resizer
    names: Names

    def cut(self, name: str, factors: Factors) -> Factors:
        """The factors of one layer, by its name in the whole model."""
        if self.names.renamed(name) is None:
            return factors
        inputs, outputs = self._axes(name)
        sizes = factors["lora_A.weight"].shape[1], factors["lora_B.weight"].shape[0]
        if sizes != (inputs.size, outputs.size):
            raise CheckpointError(
                f"the adapter of {name} is from {sizes[0]} to {sizes[1]} units and the layer from "
                f"{inputs.size} to {outputs.size}: it is for another model"
            )
        return {
            key: self._without(tensor, 1, inputs)
            if key == "lora_A.weight"
            else self._without(tensor, 0, outputs)
            for key, tensor in factors.items()
        }

    def _axes(self, name: str) -> tuple[Layout, Layout]:
        """Inputs and outputs of a layer."""
        from transformers.pytorch_utils import Conv1D

        traced = self.graph.traced
        layouts = self.graph.layouts.get(traced.canonical(f"{name}.weight"))
        if layouts is None:
            raise CheckpointError(f"the graph has no layer {name}, which the adapter adapts")
        layer = traced.module.get_submodule(name)
        if isinstance(layer, Conv1D):
            return layouts[0], layouts[1]
        if not isinstance(layer, nn.Linear):
            raise ShrinkError(f"{name} is a {type(layer).__name__}: only linear layers can be cut")
        return layouts[1], layouts[0]

    def _without(self, tensor: torch.Tensor, axis: int, layout: Layout) -> torch.Tensor:
        changed = self.resize.changed(layout)
        return tensor.index_select(axis, self.resize.index(layout)) if changed else tensor


def _cutter(plan: Plan, model: PreTrainedModel | None, traced: Traced | None) -> _Cutter:
    module: Any = traced.module if traced is not None else model
    if module is None:
        raise ShrinkError("an adapter is cut by the graph of its model: give model or traced")
    # PEFT may have put its layers into the traced model since.
    if traced is None or any(".lora_" in name for name, _ in module.named_parameters()):
        attention = module.config._attn_implementation
        traced = trace(
            architecture.build(
                module.config,
                architecture=type(module).__name__,
                attn_implementation=attention,
            )
        )
    graph, resize = planned(traced, plan)
    return _Cutter(graph, resize, Names(shortened(traced.module, plan.removed)))


def _renamed(
    config: dict[str, Any], old: dict[str, str], found: dict[str, Factors]
) -> dict[str, Any]:
    """Entries of the config that name layers, by their full names in the shorter model."""
    ranks = {new: found[name]["lora_A.weight"].shape[0] for new, name in old.items()}
    pattern, alpha = config.get("alpha_pattern") or {}, config["lora_alpha"]
    alphas = {new: pattern.get(_key(pattern, name), alpha) for new, name in old.items()}
    return {
        "target_modules": sorted(old),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {re.escape(n): rank for n, rank in ranks.items() if rank != config["r"]},
        "alpha_pattern": {re.escape(n): value for n, value in alphas.items() if value != alpha},
    }


def _key(patterns: Iterable[str], name: str) -> str:
    """The first pattern that PEFT would take for a layer."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), name)
