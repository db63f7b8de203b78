"""A smaller model of the same transformers class, for ``generate`` and everything else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxpruneWarning, InputError, PlanError, ShrinkError, TraceError
from fxprune.hf.folder.tensors import tensors_of
from fxprune.hf.open import architecture
from fxprune.hf.shrink import fields
from fxprune.hf.shrink.builder import Builder
from fxprune.hf.shrink.fields import Change
from fxprune.hf.shrink.fill import (
    check_unsaved,
    differences,
    fill,
    lost,
    misfit,
    named_tensors,
    parted,
)
from fxprune.hf.shrink.parts import others
from fxprune.hf.shrink.stacks import Names, shortened
from fxprune.plan import Plan
from fxprune.rewrite.apart import set_apart
from fxprune.rewrite.compose import whole
from fxprune.rewrite.history import history_of
from fxprune.rewrite.optimizer import Cut, carry, check
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import Traced, trace
from fxprune.trace.inputs import from_config
from fxprune.trace.lockstep import input_names
from fxprune.trace.modes import evaluation
from fxprune.trace.outputs import TOLERANCE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CANDIDATES = 8  # models of the right shapes that are run


def shrink(
    model: PreTrainedModel,
    plan: Plan,
    graph_module: fx.GraphModule | None = None,
    *,
    traced: Traced | None = None,
    optimizer: Any = None,
    share: bool = False,
) -> PreTrainedModel:
    """What a plan leaves of a model, as the same transformers class.

    So ``generate``, key/value caches, ``save_pretrained``, training and PEFT work as before. Where
    all layers lose alike, the config says the new sizes (``intermediate_size``, numbers of heads);
    else each layer is built with a config of its own, and transformers' schema for that,
    ``config.per_layer_config``, says which; a model that has one already can be shrunk again. Of a
    model of several parts the nested config that its layers hold says them. Removed blocks make the
    list of layers shorter, with ``layer_idx``, ``layer_types`` and the number of layers renumbered.
    (But a T5 whose encoder is shorter than its decoder generates with ``use_cache=False`` alone in
    transformers.)

    Entries of the config are found by their value and name, and proven: the shape of every tensor,
    before any weight is touched; the attributes of every module (scales, windows); buffers that a
    checkpoint does not hold; and, where there are weights and a graph, the outputs, which must be
    those of the rewritten graph on the inputs of ``traced`` or such as the config gives. (A plan
    that removes blocks alone needs no graph: its outputs are compared if one of the two is given.
    They have to be where a module knows its number, or holds a part for each layer.)

    Args:
        model: the model. Its weights are not needed if ``graph_module`` is given.
        plan: a plan for it; or, with ``graph_module``, the last of several that led to that graph.
        graph_module: what :func:`fxprune.rewrite` made of the model by that plan, compensated or
            trained since, perhaps: its tensors are used. Made here if left out.
        traced: the model as :func:`fxprune.trace` gives it, which saves tracing it again.
        optimizer: one that trains ``model``, or ``graph_module``: it goes on with the parameters of
            the result, in place, see :func:`fxprune.rewrite.optimizer.carry`.
        share: share the tensors that lose nothing with ``model``, and all with ``graph_module``,
            which saves their memory. By default the result has tensors of its own.

    Returns:
        The smaller model, in the training or evaluation mode of ``model``.

    Raises:
        ShrinkError: no config of the class can say what the plan leaves (the message says what
            stands in the way), or the model is none of transformers. The graph can always be had.
        PlanError: the plan is for another model.

    Warns:
        FxpruneWarning: blocks go, and the graph holds nothing of another part of the model.
    """
    plan = _for(model, plan, graph_module)
    _check(model, plan)
    stacks = shortened(model, plan.removed)
    changed = fields.changes(plan, model)
    same = not stacks and not changed
    trained = _trained(optimizer, model, graph_module)
    if same and graph_module is None:
        again = model if share else copy.deepcopy(model)
        carry(optimizer, model, again)
        return again
    names = Names(stacks)
    tensors: dict[str, torch.Tensor] = named_tensors(model)
    given = [] if graph_module is None else [graph_module]
    if changed and graph_module is None:
        traced = traced or trace(model)
        graph_module = rewrite(traced, plan)
        _check_constants(traced, graph_module, plan)
    if graph_module is not None:
        tensors |= _pruned(model, graph_module)
    wanted = Builder(model, stacks, names, tensors, changed)
    refused: list[ShrinkError] = []
    candidates = iter([_again(model)]) if same else wanted.candidates()
    while len(refused) < _CANDIDATES:
        try:
            small = next(candidates)
            _settle(small, wanted, plan, graph_module, traced)
            break
        except StopIteration:
            raise refused[0] from None
        except ShrinkError as error:
            refused.append(error)
    else:
        raise refused[0]
    if stacks:
        _warn_unread(model, traced.graph_module if traced is not None else graph_module)
    if not share:
        set_apart(small, model, *given)
    if optimizer is None or trained is not model or not changed:
        carry(optimizer, trained, small, renamed=names.renamed)
    else:
        cut = Cut.of(traced or trace(model), plan)
        carry(optimizer, model, small, cut, renamed=names.renamed)
    return small


def _trained(optimizer: Any, model: nn.Module, graph_module: fx.GraphModule | None) -> nn.Module:
    """Whose parameters an optimiser has.

    Raises:
        RewriteError: they are neither's, or its state cannot be cut.
    """
    if optimizer is not None and graph_module is not None:
        own = {id(each) for each in graph_module.parameters()}
        if all(id(each) in own for group in optimizer.param_groups for each in group["params"]):
            return graph_module
    check(optimizer, model)
    return model


def _again(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without weights, for a graph whose values alone are others."""
    return architecture.build(
        model.config,
        dtype=model.dtype,
        architecture=type(model).__name__,
        attn_implementation=model.config._attn_implementation,
    )


def _settle(
    small: PreTrainedModel,
    wanted: Builder,
    plan: Plan,
    graph_module: fx.GraphModule | None,
    traced: Traced | None,
) -> None:
    """Put the tensors into a model, and prove that it is what it should be.

    Raises:
        ShrinkError: it is not.
    """
    model, names, tensors, changed = wanted.model, wanted.names, wanted.tensors, wanted.changed
    unlike = next((each.text for each in differences(model, small, names, changed)), "")
    unlike = unlike or next(parted(small, tensors, names), "")
    if wrong := misfit(small, tensors, names):
        raise ShrinkError(unlike or wrong)
    check_unsaved(small, tensors, names)
    held = model.state_dict().keys() | set(plan.biases)
    if gone := [name for name in lost(tensors, small, names) if name in held]:
        raise ShrinkError(f"{gone[0]} has no place in the smaller model, which would lose it")
    fill(small, tensors, names)
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        small.generation_config = copy.deepcopy(generation)
        if (tokens := wanted.tokens()) is not None:
            tokens.renumber(small.generation_config)
    small.train(model.training)
    try:
        anew = wanted.tokens() is not None  # the tokens of an example are others, or gone
        compared = _same_outputs(small, plan, graph_module, traced, anew)
    except ShrinkError as failed:
        if not unlike or failed.__cause__ is not None:  # it does not even run
            raise
        raise ShrinkError(f"{failed} ({unlike})") from None
    if unlike:
        _check_again(model, small, names, changed, "" if compared else unlike)


def _check_again(
    model: PreTrainedModel,
    small: PreTrainedModel,
    names: Names,
    changed: Sequence[Change],
    unlike: str,
) -> None:
    """What a run leaves behind, both have now; what comes of a number, the outputs have shown.

    Raises:
        ShrinkError: something differs still, or it is not known what comes of it.
    """
    left = (each.text for each in differences(model, small, names, changed) if not each.counts)
    if said := next(left, unlike):
        raise ShrinkError(said)


def _for(model: nn.Module, plan: Plan, graph_module: fx.GraphModule | None) -> Plan:
    """The plan; of a graph that was pruned several times the one for what was pruned first."""
    known = None if graph_module is None else history_of(graph_module)
    if known is None or len(known.steps) < 2 or known.steps[-1].plan != plan:
        return plan
    try:
        plan.check_model(model)
    except PlanError:
        return whole(known)
    return plan


def _check(model: nn.Module, plan: Plan) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ShrinkError(
            f"{type(model).__name__} is not a transformers model, with a config to make a smaller "
            "one from; fxprune.rewrite makes a graph of it"
        )
    if not architecture.has_class(model):
        raise ShrinkError(
            f"transformers has no class {type(model).__name__}, so nothing would open a smaller "
            "one; save the graph, and load it with the original architecture: load(path, model=...)"
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


def _whole(traced: Traced) -> bool:
    """Whether a model has its weights: neither on ``meta`` nor consumed."""
    return not any(t.is_meta or not t.numel() for t in traced.tensors.values())


@torch.no_grad()
def _same_outputs(
    small: PreTrainedModel,
    plan: Plan,
    graph_module: fx.GraphModule | None,
    traced: Traced | None,
    anew: bool = False,
) -> bool:
    """The outputs must be those of the graph, if there is one or it can be made at once.

    Returns:
        Whether there was something to compare.

    Raises:
        ShrinkError: they are not.
    """
    if any(p.is_meta for p in small.parameters()):
        return False
    if graph_module is None and traced is not None and _whole(traced):
        graph_module = rewrite(traced, plan, share=True)
    if graph_module is None:
        return False
    given = None if traced is None or anew else (traced.args, traced.kwargs)
    inputs = _example(small, graph_module) if given is None else given
    if inputs is None:
        return False
    with evaluation(small), evaluation(graph_module):
        try:
            outputs = [m(*inputs[0], **inputs[1]) for m in (graph_module, small)]
        except InputError:  # made from the config, and not of the sizes that the graph is for
            return False
        except Exception as failed:
            hint = " or keep a multiple of 8 units, multiple_of=8" if "bytes" in str(failed) else ""
            raise ShrinkError(
                f"{type(small).__name__} with the smaller config does not run ({failed}); use the "
                f"graph{hint}"
            ) from failed
    expected, found = (
        next(x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor))
        for output in outputs
    )
    error = float((found.double() - expected.double()).abs().max() / expected.abs().max())
    if not error <= TOLERANCE.get(found.dtype, 1e-4):
        raise ShrinkError(
            f"{type(small).__name__} with the smaller config does not compute what the rewritten "
            f"graph does ({error:.1e} relative); use the graph"
        )
    return True


def _warn_unread(model: PreTrainedModel, graph_module: fx.GraphModule | None) -> None:
    """Blocks may be met by number from a part that was not captured, such as a tower."""
    read = () if graph_module is None else tensors_of(graph_module)
    unread = [p for p in others(model) if read and not any(n.startswith(f"{p}.") for n in read)]
    if unread:
        words = (
            f"the example inputs ran nothing of {', '.join(unread)}, so what "
            f"{type(model).__name__} computes with it was not compared without the removed blocks: "
            "trace with inputs for it"
        )
        warnings.warn(words, FxpruneWarning, stacklevel=3)


def _example(
    small: PreTrainedModel, graph_module: fx.GraphModule
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Inputs made from the config, if they are all that the graph reads."""
    try:
        inputs = dict(from_config(small))
    except TraceError:
        return None
    names = input_names(graph_module)
    if "attention_mask" in names:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return ((), inputs) if set(inputs) == set(names) else None
