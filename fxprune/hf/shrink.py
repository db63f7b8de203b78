"""A smaller model of the same transformers class, for ``generate`` and everything else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import ModelError, ShrinkError, TraceError
from fxprune.hf import architecture, fields, layers_apart
from fxprune.hf.fields import Change
from fxprune.hf.fill import check_attributes, check_buffers, fill, lost, misfit, named_tensors
from fxprune.hf.stacks import Names, Stack, layer_lists, shortened
from fxprune.hf.tensors import tensors_of
from fxprune.plan import Plan
from fxprune.rewrite.oracle import TOLERANCE
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace
from fxprune.trace.inputs import from_config
from fxprune.trace.lockstep import input_names
from fxprune.trace.modes import evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def shrink(
    model: PreTrainedModel,
    plan: Plan,
    graph_module: fx.GraphModule | None = None,
    *,
    traced: Traced | None = None,
) -> PreTrainedModel:
    """What a plan leaves of a model, as the same transformers class.

    So ``generate``, key/value caches, ``save_pretrained``, training and PEFT work as before. Where
    all layers lose alike, the config says the new sizes (``intermediate_size``, numbers of heads);
    else each layer is built with a config of its own, and transformers' schema for that,
    ``config.per_layer_config``, says which. Removed blocks make the list of layers shorter,
    with ``layer_idx``, ``layer_types`` and the number of layers renumbered. (But a T5 whose encoder
    is shorter than its decoder generates with ``use_cache=False`` alone in transformers.)

    Entries of the config are found by their value and name, and proven: the shape of every tensor,
    before any weight is touched; the attributes of every module (scales, windows); buffers that a
    checkpoint does not hold; and, where there are weights, the logits, which must be those of the
    rewritten graph.

    Args:
        model: the model. Its weights are not needed if ``graph_module`` is given.
        plan: a plan for it.
        graph_module: what :func:`fxprune.rewrite` made of the model by that plan, compensated or
            trained since, perhaps: its tensors are used, and shared. Made here if left out.
        traced: the model as :func:`fxprune.trace` gives it, which saves tracing it again.

    Returns:
        The smaller model, in the training or evaluation mode of ``model``; what loses nothing is
        shared with it.

    Raises:
        ShrinkError: no config of the class can say what the plan leaves (the message says what
            stands in the way), or the model is none of transformers. The graph can always be had.
        PlanError: the plan is for another model.
    """
    _check(model, plan)
    stacks = shortened(model, plan.removed)
    changed = fields.changes(plan)
    if not stacks and not changed:
        return model
    names = Names(stacks)
    tensors: dict[str, torch.Tensor] = named_tensors(model)
    if changed and graph_module is None:
        traced = traced or trace(model)
        graph_module = rewrite(traced, plan)
        _check_constants(traced, graph_module, plan)
    if graph_module is not None:
        tensors |= _pruned(model, graph_module)
    small = _Builder(model, stacks, names, tensors, changed).build()
    check_attributes(model, small, names, changed)
    if wrong := misfit(small, tensors, names):
        raise ShrinkError(wrong)
    check_buffers(small, tensors, names)
    for name in lost(tensors, small, names):
        if name in model.state_dict() or name in plan.biases:
            raise ShrinkError(f"{name} has no place in the smaller model, which would lose it")
    fill(small, tensors, names)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        small.generation_config = copy.deepcopy(generation)
    small.train(model.training)
    if graph_module is not None:
        _check_outputs(small, graph_module)
    return small


def _check(model: nn.Module, plan: Plan) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ShrinkError(
            f"{type(model).__name__} is no model of transformers, with a config to make a smaller "
            "one from; fxprune.rewrite makes a graph of it"
        )
    if any(parameter.numel() == 0 for parameter in model.parameters()):  # consumed
        model = architecture.build(model.config, architecture=type(model).__name__)
    plan.check_model(model)


def _check_constants(traced: Traced, graph_module: fx.GraphModule, plan: Plan) -> None:
    """Nothing that is counted from the number of units, such as ALiBi slopes, was kept in part."""
    own = tensors_of(traced.graph_module).keys() | set(plan.biases)
    for name in tensors_of(graph_module):
        if traced.canonical(name) not in own:
            raise ShrinkError(
                f"the pruned graph keeps some numbers of a range ({name}) that "
                f"{type(traced.module).__name__} would count anew"
            )


def _pruned(model: nn.Module, graph_module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The tensors of the graph under all names that they have in the model."""
    same: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model).items():
        same.setdefault(id(tensor), []).append(name)
    found = tensors_of(graph_module)
    aliases = {
        other: name for names in same.values() for name in names if name in found for other in names
    }
    return found | {other: found[name] for other, name in aliases.items()}


@dataclass(frozen=True)
class _Builder:
    """Finds the config whose model has the shapes of the tensors."""

    model: PreTrainedModel
    stacks: Sequence[Stack]
    names: Names
    tensors: Mapping[str, torch.Tensor]
    changed: Sequence[Change]

    def build(self) -> PreTrainedModel:
        """The model, on ``meta``."""
        errors: list[str] = []
        for config in self._shorter():
            for small in self._alike(config, errors):
                return small
        if not self.changed:
            paths = ", ".join(stack.path for stack in self.stacks)
            why = f" ({errors[0]})" if errors else ""
            raise ShrinkError(
                f"no entry of {type(self.model.config).__name__} says how many layers {paths} "
                f"has{why}"
            )
        config, path = next(self._shorter()), self._path()
        return self._apart(config, path)

    def _shorter(self) -> Iterator[PreTrainedConfig]:
        if self.stacks:
            return fields.shorter(self.model.config, self.stacks)
        return iter([self.model.config])

    def _alike(self, config: PreTrainedConfig, errors: list[str]) -> Iterator[PreTrainedModel]:
        """Models of one config for all layers, if all lose alike."""
        layers = self._by_layer()
        rest = [change for change in self.changed if change.layer is None]
        each = {tuple(sorted((c.units, c.size, c.kept) for c in some)) for some in layers.values()}
        if len(each) > 1 or (layers and len(layers) < self._count()):
            return
        some = next(iter(layers.values()), [])
        for edits, _ in fields.choices(config, [*rest, *some]):
            small = self._made(fields.edited(config, edits), errors)
            if small is None or not self._has_lists(small):
                continue
            wrong = misfit(small, self.tensors, self.names) if self.changed else ""
            if not wrong:
                yield small
            errors.append(wrong)

    def _has_lists(self, small: nn.Module) -> bool:
        """Whether its lists of layers have the lengths that they should."""
        lengths = {path: len(layers) for path, layers in layer_lists(self.model)}
        lengths |= {stack.path: len(stack.kept) for stack in self.stacks}
        return {path: len(layers) for path, layers in layer_lists(small)} == lengths

    def _made(self, config: PreTrainedConfig, errors: list[str]) -> PreTrainedModel | None:
        try:
            return architecture.build(
                config,
                dtype=self.model.dtype,
                architecture=type(self.model).__name__,
                attn_implementation=self.model.config._attn_implementation,
            )
        except ModelError as error:
            errors.append(str(error))
            return None

    def _by_layer(self) -> dict[tuple[str, int], list[Change]]:
        found: dict[tuple[str, int], list[Change]] = {}
        for change in self.changed:
            if change.layer is not None:
                found.setdefault(change.layer, []).append(change)
        return found

    def _count(self) -> int:
        """How many layers are left."""
        gone = sum(stack.size - len(stack.kept) for stack in self.stacks)
        return sum(len(layers) for _, layers in layer_lists(self.model)) - gone

    def _path(self) -> str:
        """The one list that layers of their own sizes are in."""
        paths = [path for path, _ in layer_lists(self.model)]
        if len(paths) != 1:
            raise ShrinkError(
                f"{type(self.model).__name__} has {len(paths)} lists of layers, and a config with "
                "sizes of each layer speaks of one"
            )
        return paths[0]

    def _apart(self, config: PreTrainedConfig, path: str) -> PreTrainedModel:
        """A model whose layers have configs of their own."""
        rest = [change for change in self.changed if change.layer is None]
        errors: list[str] = []
        for edits, _ in fields.choices(config, rest):
            base = fields.edited(config, edits)
            small = self._made(base, errors)
            if small is None:
                continue
            overrides = self._overrides(base, small, path)
            # Modules inside keep the config without: reading a size from one with it is an error.
            small.config = fields.apart(base, overrides)
            wrong = misfit(small, self.tensors, self.names)
            if not wrong:
                return small
            errors.append(wrong)
        raise ShrinkError(f"{_what(rest)}: {next(filter(None, errors), 'no entry of the config')}")

    def _overrides(
        self, base: PreTrainedConfig, small: PreTrainedModel, path: str
    ) -> dict[int | str, dict[str, Any]]:
        """Entries of each layer that differ from the config's; the layers are put in place."""
        layers: Any = small.get_submodule(path)
        known: dict[str, tuple[str, ...]] = {}
        found: dict[int | str, dict[str, Any]] = {}
        for (_, number), changed in sorted(self._by_layer().items()):
            place = self.names.shorter(path, number)
            edits, names = self._layer(base, layers, f"{path}.{place}.", changed, known)
            for name in edits:
                if not hasattr(base, name):  # transformers wants a value for the other layers
                    setattr(base, name, fields.head_size(base))
            found[place] = dict(edits)
            known |= names
        return found

    def _layer(
        self,
        base: PreTrainedConfig,
        layers: nn.ModuleList,
        inside: str,
        changed: Sequence[Change],
        known: Mapping[str, tuple[str, ...]],
    ) -> tuple[fields.Edits, dict[str, tuple[str, ...]]]:
        place = int(inside.split(".")[-2])
        wrong = ""
        for edits, names in fields.choices(base, changed, known):
            cls, config = type(layers[place]), fields.edited(base, edits)
            try:
                with torch.device("meta"):
                    layer = layers_apart.layer_of(cls, config, place)
            except Exception as error:  # whatever a constructor may raise
                wrong = wrong or architecture.last_line(error)
                continue
            layers[place] = layer.train(layers[place].training)
            holder = _holder(inside, layer)
            found = misfit(holder, self.tensors, self.names)
            if not found:
                return edits, names
            wrong = wrong or found
        raise ShrinkError(f"{_what(changed)}: {wrong or 'no entry of the config counts them'}")


def _holder(inside: str, layer: nn.Module) -> nn.Module:
    """A module in which the layer has its path."""
    for name in reversed(inside.rstrip(".").split(".")):
        outer = nn.Module()
        outer.add_module(name, layer)
        layer = outer
    return layer


def _what(changed: Sequence[Change]) -> str:
    """What cannot be said, and the usual reason."""
    words = {change.units for change in changed}
    names = ", ".join(change.group for change in changed)
    if words & {"qk_dim", "v_dim"}:
        why = "query/key and value dims of a head are one number there"
    elif words & {"heads", "queries"}:
        why = "the size of a head follows from how many there are"
    else:
        why = "no entry of the config makes these sizes alone"
    return f"{names} cannot be said in a config ({why}; fxprune.rewrite makes a graph of it)"


@torch.no_grad()
def _check_outputs(small: PreTrainedModel, graph_module: fx.GraphModule) -> None:
    """The outputs must be those of the graph.

    Raises:
        ShrinkError: they are not.
    """
    if any(p.is_meta for p in small.parameters()):
        return
    try:
        inputs = from_config(small)
    except TraceError:
        return
    if set(inputs) > set(input_names(graph_module)):
        return
    with evaluation(small), evaluation(graph_module):
        found, expected = (
            next(x for x in pytree.tree_leaves(m(**inputs)) if isinstance(x, torch.Tensor))
            for m in (small, graph_module)
        )
    error = float((found.double() - expected.double()).abs().max() / expected.abs().max())
    if not error <= TOLERANCE.get(found.dtype, 1e-4):
        raise ShrinkError(
            f"{type(small).__name__} with the smaller config does not compute what the rewritten "
            f"graph does ({error:.1e} relative); use the graph"
        )
