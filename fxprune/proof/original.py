"""Runs of the original with the units of a plan switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.branches.pieces import pieces_of
from fxprune.data.loader import Source
from fxprune.data.sweep import moved
from fxprune.errors import OracleError
from fxprune.plan import Plan
from fxprune.proof.bypassed import BypassedRun
from fxprune.proof.examples import Example, Examples, named
from fxprune.proof.finite import check_finite
from fxprune.proof.masked import Masked
from fxprune.proof.runs import Run
from fxprune.proof.sliced import check_sliced
from fxprune.proof.tokens import kept_tokens, renumbered
from fxprune.rewrite.on_demand import DenseWeights, SmallWeights
from fxprune.rewrite.planned import planned
from fxprune.trace.lockstep import flatten
from fxprune.trace.outputs import OutputReport, compared, paths
from fxprune.trace.traced import Traced


@dataclass(frozen=True)
class OriginalRun:
    """What the original gives on inputs of one size.

    Attributes:
        example: the inputs.
        smaller: the same for the smaller model, in which tokens may have other numbers.
        names: the paths of the outputs.
        outputs: every output, flat.
        bypassed: how the model without the removed branches and blocks compares with the original
            with them off.
        exits: of a model that runs in pieces, what leaves each, by the name of the node.
    """

    example: Example
    smaller: Example
    names: tuple[str, ...]
    outputs: tuple[Any, ...]
    bypassed: tuple[OutputReport, ...]
    exits: Mapping[str, Any] = field(default_factory=dict)


class Original:
    """The original with the units of a plan switched off.

    Args:
        whole: the original, with its weights.
        plan: what is switched off.
        source: where the weights are read from as they are used, if they are not in memory.

    Attributes:
        graph: its groups, without the branches and blocks that the plan removes.
        resize: what becomes of its axes.
        normalised: groups of the plan whose units are averaged in a norm.
    """

    def __init__(self, whole: Traced, plan: Plan, source: Source | None = None) -> None:
        self._whole, self._plan, self.source = whole, plan, source
        self.graph, self.resize = planned(whole, plan)
        self.weights, exits = None, set[fx.Node]()
        if source is not None:
            source.check(whole)
            self.weights = DenseWeights(whole, source)
            exits = {node for piece in pieces_of(self.graph.traced) for node in piece.gives}
        self._exits = {node.name: node for node in exits}
        self._tokens = kept_tokens(self.graph, plan)
        self.normalised = tuple(g for g in plan.kept if self.graph[g].normalised)

    def small(self, small: fx.GraphModule) -> SmallWeights | None:
        """The weights of a rewritten graph; None if it has them."""
        if self.weights is None:
            return None
        return SmallWeights(self.graph, self.resize, small, self._plan.biases, self.weights)

    def check(self, small: fx.GraphModule) -> int:
        """Compare the tensors of a rewritten graph, see :func:`check_sliced`; 0 if none is left."""
        if self.consumed or self.weights is not None:
            return 0
        return check_sliced(self.graph, self.resize, small, self._plan.biases)

    @property
    def consumed(self) -> bool:
        """Whether rewriting freed tensors of the original."""
        return any(
            not tensor.numel() and all(layout.size for layout in self.graph.layouts[name])
            for name, tensor in self.graph.traced.tensors.items()
        )

    def runs(self, examples: Examples, dtype: torch.dtype | None) -> tuple[OriginalRun, ...]:
        """A run at each size.

        Args:
            examples: the inputs.
            dtype: precision, if not the model's own.

        Raises:
            OracleError: outputs are not finite, or bypassing is not what switching off is.
        """
        options: dict[str, Any] = {"weights": self.weights, "watched": self._exits}
        masked = Masked(self.graph.traced, self.graph, self.resize, dtype, **options)
        return tuple(self._run(example, masked) for example in examples.each)

    def jittered(
        self, example: Example, dtype: torch.dtype | None, draws: int
    ) -> Iterator[list[Any]]:
        """Its outputs with every parameter moved by up to one rounding, anew for each draw."""
        jitter = torch.Generator().manual_seed(0)
        options: dict[str, Any] = {"weights": self.weights, "jitter": jitter}
        masked = Masked(self.graph.traced, self.graph, self.resize, dtype, **options)
        flat = self._placeholders(example)
        for _ in range(draws):
            yield self._cut(masked.outputs(flat))

    def _run(self, example: Example, masked: Masked) -> OriginalRun:
        shorter = self.graph.traced
        example, smaller = renumbered(self._whole.graph_module, example, self._tokens)
        flat = self._placeholders(example)
        names = output_paths(shorter)
        bypassed = self._bypassed(flat, names, masked.dtype) if self._plan.removed else ()
        outputs = masked.outputs(flat)
        nodes = pytree.tree_leaves(shorter.graph_module.graph.output_node().args[0])
        check_finite(outputs, nodes, names, example.what, masked, flat)
        exits = {
            name: self.resize.slice(value, self.resize.axes(self._exits[name]))
            for name, value in masked.kept.items()
            if isinstance(self.graph.inferred.axes.get(self._exits[name]), tuple)
        }
        cut = tuple(self._cut(outputs))
        return OriginalRun(example, smaller, tuple(names), cut, bypassed, exits)

    def _placeholders(self, example: Example) -> list[Any]:
        flat = placeholders(self._whole, example.args, example.kwargs)
        return flat if self.source is None else moved(flat, self.source.device)

    def _cut(self, outputs: list[Any]) -> list[Any]:
        """Outputs of which intermediate values, and those of tokens, are those that stay."""
        nodes = pytree.tree_leaves(self.graph.traced.graph_module.graph.output_node().args[0])
        for place, node in enumerate(nodes):
            axes = self.graph.inferred.axes.get(node)
            if isinstance(axes, tuple) and any(map(self.resize.changed, axes)):
                outputs[place] = self.resize.slice(outputs[place], axes)
        return outputs

    def _bypassed(
        self, flat: list[Any], names: list[str], dtype: torch.dtype | None
    ) -> tuple[OutputReport, ...]:
        """How far the model without branches and blocks is from the original with them off."""
        shorter = self.graph.traced
        weights = self.weights
        expected = BypassedRun(self._whole, shorter.removed, dtype, weights).outputs(flat)
        actual = Run(shorter.graph_module, dtype, weights=weights).outputs(flat)
        reports = tuple(map(compared, names, expected, actual))
        for report in reports:
            if report.problem:
                raise OracleError(
                    "the model without the removed branches and blocks does not compute what the "
                    f"original does with them off: output `{report.path}` {report.problem}. It "
                    "must not be used; please report the model"
                )
        return reports


def placeholders(traced: Traced, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Inputs as the values of the graph's placeholders, in their order."""
    return flatten(traced.graph_module, named(traced.graph_module, args, kwargs))


def output_paths(traced: Traced) -> list[str]:
    """Where each output of the graph is in what the model returns."""
    codegen: Any = traced.graph_module.graph._codegen
    return paths(codegen.pytree_info.out_spec)
