"""Find every consumer of the pruned units in the smaller graph, or say why it is left alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.compensate.dense import Dense
from fxprune.compensate.head import head
from fxprune.compensate.places import place, readers
from fxprune.compensate.reasons import reason_against, uses
from fxprune.compensate.report import Compensated
from fxprune.compensate.residual import addition
from fxprune.errors import RewriteError
from fxprune.groups.consumers import (
    Consumer,
    consumers,
    every_consumer,
    origin_in,
    stack_in,
)
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.origin import Origin
from fxprune.groups.stacked import Stack
from fxprune.ops.resize import Resizer
from fxprune.plan import Plan
from fxprune.trace.sizes import form

aten = torch.ops.aten
_VIEWS = {aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.contiguous}


@dataclass(frozen=True, eq=False)
class Stacked:
    """A product with a stacked weight in the original and in the smaller graph.

    Attributes:
        stacks: how rows meet matrices.
        origins: which token each row is of.
        kept: the experts that stay, int64.
    """

    stacks: tuple[Stack, Stack]
    origins: tuple[Origin, Origin]
    kept: Tensor

    @property
    def reads(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """The whole numbers that have to be there at the products, in both graphs."""
        pairs = zip(self.stacks, self.origins, strict=True)
        return {stack.node: (*stack.reads, *origin.reads) for stack, origin in pairs}


@dataclass(frozen=True, eq=False)
class Match:
    """A consumer and the same product in the smaller graph.

    Attributes:
        name: the consumer's module.
        consumer: the product in the original graph.
        node: the product in the smaller graph, or the call of the module that holds it.
        source: its activation there.
        owner: the module that holds the smaller weight.
        weight_name: the weight's name in ``owner``.
        holder: the module that holds the smaller bias, None where there is none.
        bias_name: the bias' name in ``holder``.
        fits_bias: whether the bias may change: nothing else reads it.
        kept_inputs: positions of the weight's input axis that stay, int64.
        kept_outputs: positions of its output axis that stay, None if all.
        wanted: values of the dense model whose sum the output should be, the latest last: its own
            there or, with what it is added to, the residual stream.
        added: values of the smaller model that are added to the output, and make up for as much.
        stacked: of a stacked weight, how its rows meet the matrices of experts in both graphs.
    """

    name: str
    consumer: Consumer
    node: fx.Node
    source: fx.Node
    owner: nn.Module
    weight_name: str
    holder: nn.Module | None
    bias_name: str
    fits_bias: bool
    kept_inputs: Tensor
    kept_outputs: Tensor | None
    wanted: tuple[fx.Node, ...]
    added: tuple[fx.Node, ...]
    stacked: Stacked | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The smaller weight."""
        found: nn.Parameter = getattr(self.owner, self.weight_name)
        return found

    @property
    def stop(self) -> fx.Node:
        """Where the run of the dense model has all that is wanted."""
        return self.wanted[-1]

    @property
    def bias(self) -> Tensor | None:
        """The smaller bias."""
        return None if self.holder is None else getattr(self.holder, self.bias_name)


def match(
    graph: DependencyGraph,
    dense: Dense,
    small: fx.GraphModule,
    plan: Plan,
    resize: Resizer,
    everywhere: bool,
    stream: bool,
    ignore: Mapping[str, str],
) -> tuple[Match | Compensated, ...]:
    """The consumers of the plan's groups, in graph order, or every product with a weight.

    The head is left out of the latter unless it reads pruned units: its outputs are as many as the
    vocabulary has tokens, and what they lack is a matter of loss, not of squares. With ``stream``
    they aim at the residual stream. Tensors in ``ignore`` keep their values, with what they are
    ignored for.

    Raises:
        RewriteError: ``small`` is not what the plan makes of the model.
    """
    places = {node: i for i, node in enumerate(graph.traced.graph_module.graph.nodes)}
    found = {c.node: c for name in plan.kept for c in consumers(graph, graph[name])}
    if everywhere:
        last = head(graph)
        others = (c for c in every_consumer(graph) if last is None or c.node is not last.node)
        found |= {c.node: c for c in others}
    calls = readers(graph.traced, small)
    stacks = [s for node in small.graph.nodes if (s := stack_in(graph.traced, node)) is not None]
    calls |= {_numbered(str(s.weight.target), s.expert): s.node for s in stacks}
    ordered = [found[node] for node in sorted(found, key=places.__getitem__)]
    following = [dense.node(each.node) for each in ordered[1:]]
    return tuple(
        Compensated(named(each), skipped=ignore[each.site.tensor])
        if each.site.tensor in ignore
        else _match(graph, dense, small, plan, resize, each, calls, stream, before)
        for each, before in itertools.zip_longest(ordered, following)
        if not _gone(graph, resize, each)
    )


def ends(
    matches: Sequence[Match],
) -> tuple[tuple[list[fx.Node], list[fx.Node]], dict[fx.Node, tuple[fx.Node, ...]]]:
    """What both runs, of the dense and of the smaller model, come to, and what is kept until there.

    The last is by the node that the run stops at.
    """
    there = [node for each in matches for node in each.wanted]
    here = [node for each in matches for node in (*each.added, each.node)]
    keep = {each.stop: each.wanted[:-1] for each in matches} | {m.node: m.added for m in matches}
    keep |= {k: v for m in matches if m.stacked for k, v in m.stacked.reads.items()}
    return (there, here), keep


def named(consumer: Consumer) -> str:
    """What a report calls a consumer."""
    name = consumer.site.tensor.removesuffix(".weight")
    return name if consumer.stack is None else _numbered(name, consumer.stack.expert)


def _numbered(name: str, expert: int | None) -> str:
    return name if expert is None else f"{name}[{expert}]"


def _gone(graph: DependencyGraph, resize: Resizer, consumer: Consumer) -> bool:
    """Whether it is of one expert, which went."""
    expert = None if consumer.stack is None else consumer.stack.expert
    return expert is not None and expert not in _kept_experts(graph, resize, consumer)


def _kept_experts(graph: DependencyGraph, resize: Resizer, consumer: Consumer) -> list[int]:
    kept: list[int] = resize.index(graph.layouts[consumer.site.tensor][0]).tolist()
    return kept


def _match(
    graph: DependencyGraph,
    dense: Dense,
    small: fx.GraphModule,
    plan: Plan,
    resize: Resizer,
    consumer: Consumer,
    calls: dict[str, fx.Node],
    stream: bool,
    before: fx.Node | None,
) -> Match | Compensated:
    weight_name, name = consumer.site.tensor, named(consumer)
    if reason := reason_against(graph.traced, consumer):
        return Compensated(name, skipped=reason)
    key = weight_name
    if consumer.stack is not None and consumer.stack.expert is not None:
        kept = _kept_experts(graph, resize, consumer)
        key = _numbered(weight_name, kept.index(consumer.stack.expert))
    node = calls.get(key)
    if node is None:
        raise RewriteError(
            f"{weight_name!r} is not used in the smaller model: it is not what the plan makes of "
            "the traced one"
        )
    there = dense.node(consumer.node)
    stacked = None if consumer.stack is None else _stacked(graph, dense, resize, there, node)
    if isinstance(stacked, str):
        return Compensated(name, skipped=stacked)
    source = _source(consumer, node) if stacked is None else stacked.stacks[1].source
    if source is None:
        return Compensated(name, skipped="its module does more than a product with its input")
    layouts = graph.layouts[weight_name]
    owner, leaf = place(graph.traced, small, node, weight_name)
    weight: nn.Parameter = getattr(owner, leaf)
    if tuple(weight.shape) != tuple(resize.size(layout) for layout in layouts):
        raise RewriteError(
            f"{weight_name!r} has shape {tuple(weight.shape)} in the smaller model, and the plan "
            f"makes it {tuple(resize.size(layout) for layout in layouts)}"
        )
    bias = consumer.bias
    fits = bias is not None and uses(graph.traced, bias) == 1
    gained = f"{consumer.module}.bias"
    if bias is None and gained in plan.biases:
        bias, fits = gained, True
    outputs = layouts[consumer.output_axis]
    holder, bias_leaf = place(graph.traced, small, node, bias) if bias else (None, "")
    wanted, added = _stream(dense, consumer, node, before) if stream else ((there,), ())
    return Match(
        name=name,
        consumer=consumer,
        node=node,
        source=source,
        owner=owner,
        weight_name=leaf,
        holder=holder,
        bias_name=bias_leaf,
        fits_bias=fits,
        kept_inputs=_beside(weight, resize.index(consumer.site.layout)),
        kept_outputs=_beside(weight, resize.index(outputs)) if resize.changed(outputs) else None,
        wanted=wanted,
        added=added,
        stacked=stacked,
    )


def _beside(weight: Tensor, index: Tensor) -> Tensor:
    """Positions on the device of a weight; on the CPU where that has no values."""
    return index if weight.is_meta else index.to(weight.device)


def _stream(
    dense: Dense, consumer: Consumer, here: fx.Node, before: fx.Node | None
) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """What the stream that a product's output ends in should be the sum of, and what is added here.

    Before a hole that is the one value behind it, which must come before the product that is taken
    next; else it is what the product gives there and what that is added to.
    """
    there = dense.node(consumer.node)
    mine, smaller, original = map(addition, (consumer.node, here, there))
    if consumer.stack is not None or mine is None or smaller is None:
        return (there,), ()
    if len(mine.others) != len(smaller.others):
        return (there,), ()
    own = dense.node(mine.node)
    views = [view for view in mine.views if _alike(consumer, view, mine.node)]
    behind = [aim for view in views if (aim := dense.aim(view, before)) is not dense.node(view)]
    aim = behind[0] if behind else own
    if original is not None and original.node is aim:
        return (*original.others, there), smaller.others
    if before is None or aim < before:
        return (aim,), smaller.others
    return (there,), ()


def _alike(consumer: Consumer, view: fx.Node, whole: fx.Node) -> bool:
    """Whether a view of a sum has the same rows."""
    one, other = form(view.meta["val"]), form(whole.meta["val"])
    return one == other or (consumer.source_axis == -1 and one[-1:] == other[-1:])


def _stacked(
    graph: DependencyGraph, dense: Dense, resize: Resizer, there: fx.Node, node: fx.Node
) -> Stacked | str:
    """How the rows of a product meet the matrices of experts in both graphs, or why not."""
    stacks = stack_in(dense.traced, there), stack_in(graph.traced, node)
    assert stacks[0] is not None
    weight = str(stacks[0].weight.target)
    if stacks[1] is None:
        raise RewriteError(f"{weight!r} is not used in the smaller model as in the traced one")
    origins = origin_in(dense.traced, stacks[0]), origin_in(graph.traced, stacks[1])
    if origins[0] is None or origins[1] is None:
        return "which token each of its rows is of cannot be told"
    kept = resize.index(graph.layouts[weight][0])
    return Stacked((stacks[0], stacks[1]), (origins[0], origins[1]), kept)


def _source(consumer: Consumer, node: fx.Node) -> fx.Node | None:
    """The activation of the product in the smaller graph, None where it is not to be had."""
    if node.op != "call_module":
        places = [i for i, value in enumerate(consumer.node.args) if value is consumer.source]
        found = node.args[places[0]] if places else None
        return found if isinstance(found, fx.Node) else None
    # The module's input must be the product's, but for its shape.
    source, call = consumer.source, _call(consumer.node)
    while _call(source) == call:
        if getattr(source.target, "overloadpacket", None) not in _VIEWS:
            return None
        (source, *_) = source.all_input_nodes
    entering = node.args[0]
    return entering if isinstance(entering, fx.Node) else None


def _call(node: fx.Node) -> str | None:
    """Key of the innermost module call that a node belongs to."""
    stack: Sequence[str] = list(node.meta.get("nn_module_stack") or ())
    return stack[-1] if stack and node.op == "call_function" else None
