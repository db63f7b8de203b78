"""Statistics of what meets stacked weights, one expert at a time, taken in the traced graph.

The products with the matrices of experts lie within one module, where no hook sees their inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.data.graph_inputs import Masks, masks, row_count
from fxprune.errors import CriterionError
from fxprune.groups.consumers import Consumer, origin_in
from fxprune.groups.origin import Origin
from fxprune.groups.stacked import Stack, Values, by_expert
from fxprune.importance.curvature import MomentRecorder, Moments
from fxprune.importance.statistics import Statistics, measure, merge
from fxprune.trace.lockstep import flatten, input_names
from fxprune.trace.traced import Traced


@dataclass(eq=False)
class Experts:
    """What was seen at one stacked weight.

    The gradients of single experts would be as many matrices as there are experts, larger than
    their weights. All experts of a weight have one, and each its own share of it.

    Attributes:
        statistics: of the rows of each expert that a token was sent to.
        inputs: sum of the outer products of those, float32 (inputs, inputs).
        slopes: sum of the squared gradients of the outputs of each, float32 (experts,).
        gradients: sum of the outer products of the gradients of all, float32 (outputs, outputs).
        tokens: how many came past, sent to any or none.
    """

    statistics: dict[int, Statistics] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    slopes: Tensor | None = None
    gradients: Tensor | None = None
    tokens: int = 0

    def of(self, expert: int) -> Moments | None:
        """The moments of one expert that a token was sent to; None where none were taken."""
        if self.gradients is None or self.slopes is None:
            return None
        total = float(self.slopes.sum())
        share = float(self.slopes[expert]) / total if total > 0 else 0.0
        rows = self.statistics[expert].count
        return Moments(self.inputs[expert], self.gradients, rows, self.tokens, share)


@dataclass(eq=False)
class ExpertRecorder(MomentRecorder):
    """Collects by expert what stacked weights are applied to, in a run of the traced graph.

    Statistics in every run; moments within :meth:`recording` alone.

    Attributes:
        traced: the model.
        consumers: the products with stacked weights.
        experts: what was seen, by the name of the weight.
        origins: of each product, where its rows come from; None where that cannot be told.
    """

    traced: Traced | None = None
    consumers: tuple[Consumer, ...] = ()
    experts: dict[str, Experts] = field(default_factory=dict)
    origins: dict[fx.Node, Origin | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for consumer in self.consumers:
            assert self.traced is not None
            self.origins[consumer.node] = origin_in(self.traced, stack_at(consumer))

    def reads(self, consumer: Consumer) -> tuple[fx.Node, ...]:
        """The whole numbers that tell which rows are whose."""
        origin = self.origins[consumer.node]
        return (*stack_at(consumer).reads, *(() if origin is None else origin.reads))

    @property
    def bases(self) -> dict[fx.Node, Origin]:
        """The values whose rows are tokens."""
        return {origin.base: origin for origin in self.origins.values() if origin is not None}

    def module(self) -> nn.Module:
        """The traced graph as a module that is watched as it runs."""
        return _Watched(self)

    @torch.no_grad()
    def see(self, consumer: Consumer, values: Values, hidden: Masks) -> tuple[Tensor, list[Tensor]]:
        """Record what comes into a product.

        Args:
            consumer: the product.
            values: of its source and of :meth:`reads`.
            hidden: which tokens count, see :func:`fxprune.data.graph_inputs.masks`.

        Returns:
            The inputs as rows, and which of the rows belong to each expert.

        Raises:
            CriterionError: tokens are hidden, and which rows are of those cannot be told.
        """
        stack = stack_at(consumer)
        rows = stack.rows(values[stack.source].detach())
        experts = stack.experts(rows, values)
        if (counts := self._counts(consumer, len(rows), values, hidden)) is not None:
            experts = experts.where(counts.to(experts.device), stack.size)
        known = self.experts.setdefault(consumer.site.tensor, Experts())
        places = by_expert(experts, stack.size)
        for expert, mine in enumerate(places):
            if not len(mine):
                continue
            x = rows[mine]
            found, before = measure(x), known.statistics.get(expert)
            known.statistics[expert] = found if before is None else merge(before, found)
            if self.factor is not None:
                x = x.float()
                if expert not in known.inputs:
                    known.inputs[expert] = x.new_zeros(x.shape[1], x.shape[1])
                known.inputs[expert].addmm_(x.T, x)
        return rows, places

    def differentiated(
        self, consumer: Consumer, places: list[Tensor], tokens: int, output: Tensor
    ) -> Tensor:
        """Record the gradient of a product's output when it comes; returns what stands for it."""
        assert self.factor is not None
        stack, factor = stack_at(consumer), self.factor
        known = self.experts[consumer.site.tensor]
        if known.gradients is None:
            width = output.shape[stack.axis]
            known.gradients = output.new_zeros(width, width, dtype=torch.float32)
            known.slopes = known.gradients.new_zeros(stack.size)
        one = min((c.expert for c in self._stacks(consumer) if c.expert is not None), default=None)
        if stack.expert == one:  # of products with one expert each, one sees all tokens come past
            known.tokens += tokens
        order = torch.cat(places)
        owners = torch.repeat_interleave(torch.tensor([len(each) for each in places])).to(order)

        def arrive(gradient: Tensor) -> None:
            g = stack.results(gradient)[order].float() * factor
            assert known.gradients is not None
            assert known.slopes is not None
            known.gradients.addmm_(g.T, g)
            known.slopes.index_add_(0, owners, g.square().sum(1))

        first = not output.requires_grad
        output.requires_grad_()
        output.register_hook(arrive)  # type: ignore[no-untyped-call]
        # A leaf must not be changed in place, and the graph may do that.
        return output.clone() if first else output

    def _stacks(self, consumer: Consumer) -> list[Stack]:
        name = consumer.site.tensor
        return [stack_at(each) for each in self.consumers if each.site.tensor == name]

    def tokens(self, consumer: Consumer, rows: Mapping[fx.Node, int], hidden: Masks) -> int:
        """How many tokens come past a product; ``rows`` of each of :attr:`bases`."""
        origin = self.origins[consumer.node]
        assert origin is not None  # else moments are refused before
        mask = hidden.get(self._base_rows(origin))
        return rows[origin.base] if mask is None else int(mask.sum())

    def _counts(
        self, consumer: Consumer, rows: int, values: Values, hidden: Masks
    ) -> Tensor | None:
        """Which rows count, None for all."""
        if not hidden:
            return None
        origin = self.origins[consumer.node]
        if origin is None:
            raise CriterionError(
                f"an attention mask hides tokens, and which rows of {consumer.site.tensor!r} are "
                "of those cannot be told: leave padding out of the calibration data"
            )
        mask = hidden.get(self._base_rows(origin))
        return None if mask is None else mask[origin.tokens(rows, values, mask.device)]

    def _base_rows(self, origin: Origin) -> int:
        assert self.traced is not None
        return row_count(self.traced, origin.base.meta["val"].shape[:-1])


class _Watched(nn.Module):
    """Runs the traced graph for a recorder; looks like the model in all else."""

    def __init__(self, recorder: ExpertRecorder) -> None:
        super().__init__()
        assert recorder.traced is not None
        self.graph_module = recorder.traced.graph_module
        self.__dict__["_recorder"] = recorder

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph gives.

        Raises:
            CriterionError: the graph has no such input.
        """
        names = input_names(self.graph_module)
        named = dict(zip(names, args, strict=False)) | kwargs
        if other := next((name for name in named if name not in names), None):
            raise CriterionError(
                f"experts are watched in the traced model, which takes {', '.join(names)} and no "
                f"{other!r}: give a loss_fn that compares logits with labels"
            )
        recorder: ExpertRecorder = self.__dict__["_recorder"]
        leaves = flatten(self.graph_module, named)
        assert recorder.traced is not None
        return _Run(recorder, masks(recorder.traced, leaves)).run(*leaves)


class _Run(fx.Interpreter):
    def __init__(self, recorder: ExpertRecorder, hidden: Masks) -> None:
        assert recorder.traced is not None
        super().__init__(recorder.traced.graph_module)
        self.recorder, self.hidden = recorder, hidden
        self.at = {consumer.node: consumer for consumer in recorder.consumers}
        self.wanted = {node for each in recorder.consumers for node in recorder.reads(each)}
        self.numbers: dict[fx.Node, Tensor] = {}
        self.rows: dict[fx.Node, int] = {}
        self.bases = recorder.bases

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and record it if it is a product with a stacked weight."""
        value = super().run_node(n)
        if n in self.wanted:
            self.numbers[n] = value
        if n in self.bases:
            self.rows[n] = value.shape[:-1].numel()
        if n in self.at:
            consumer = self.at[n]
            values = self.numbers | {consumer.source: self.env[consumer.source]}
            _, places = self.recorder.see(consumer, values, self.hidden)
            if self.recorder.factor is not None:
                count = self.recorder.tokens(consumer, self.rows, self.hidden)
                value = self.recorder.differentiated(consumer, places, count, value)
        return value


def stack_at(consumer: Consumer) -> Stack:
    """How the rows of a product with a stacked weight meet its matrices."""
    assert consumer.stack is not None
    return consumer.stack


def check_same(
    traced: Traced, parameters: Mapping[str, nn.Parameter], names: Iterable[str]
) -> None:
    """Refuse stacked weights that the traced model has not, or has others of.

    Raises:
        CriterionError: names one.
    """
    for name in names:
        there, here = traced.tensors[name], parameters[name]
        why = None
        if any(tensor.is_meta for tensor in traced.tensors.values()):
            why = "has no weights"
        elif there is not here and not torch.equal(there.detach(), here.detach().to(there)):
            why = "has other weights"
        if why is not None:
            raise CriterionError(
                f"the inputs of the experts of {name!r} are seen in the traced model, which {why}: "
                "trace the model that is to be scored"
            )
