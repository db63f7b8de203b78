"""Runs of the original with the units of a plan switched off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxprune.errors import OracleError
from fxprune.plan import Plan
from fxprune.proof.bypassed import BypassedRun
from fxprune.proof.examples import Example, Examples, named
from fxprune.proof.finite import check_finite
from fxprune.proof.masked import Masked
from fxprune.proof.runs import Run
from fxprune.proof.sliced import check_sliced
from fxprune.proof.tokens import kept_tokens, renumbered
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
    """

    example: Example
    smaller: Example
    names: tuple[str, ...]
    outputs: tuple[Any, ...]
    bypassed: tuple[OutputReport, ...]


class Original:
    """The original with the units of a plan switched off.

    Args:
        whole: the original, with its weights.
        plan: what is switched off.

    Attributes:
        graph: its groups, without the branches and blocks that the plan removes.
        resize: what becomes of its axes.
        normalised: groups of the plan whose units are averaged in a norm.
    """

    def __init__(self, whole: Traced, plan: Plan) -> None:
        self._whole, self._plan = whole, plan
        self.graph, self.resize = planned(whole, plan)
        self._tokens = kept_tokens(self.graph, plan)
        self.normalised = tuple(g for g in plan.kept if self.graph[g].normalised)

    def check(self, small: fx.GraphModule) -> int:
        """Compare the tensors of a rewritten graph, see :func:`check_sliced`; 0 if none is left."""
        if self.consumed:
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
        masked = Masked(self.graph.traced, self.graph, self.resize, dtype)
        return tuple(self._run(example, masked) for example in examples.each)

    def jittered(
        self, example: Example, dtype: torch.dtype | None, draws: int
    ) -> Iterator[list[Any]]:
        """Its outputs with every parameter moved by up to one rounding, anew for each draw."""
        jitter = torch.Generator().manual_seed(0)
        masked = Masked(self.graph.traced, self.graph, self.resize, dtype, jitter)
        flat = placeholders(self._whole, example.args, example.kwargs)
        for _ in range(draws):
            yield self._cut(masked.outputs(flat))

    def _run(self, example: Example, masked: Masked) -> OriginalRun:
        shorter = self.graph.traced
        example, smaller = renumbered(self._whole.graph_module, example, self._tokens)
        flat = placeholders(self._whole, example.args, example.kwargs)
        names = output_paths(shorter)
        bypassed = self._bypassed(flat, names, masked.dtype) if self._plan.removed else ()
        outputs = masked.outputs(flat)
        nodes = pytree.tree_leaves(shorter.graph_module.graph.output_node().args[0])
        check_finite(outputs, nodes, names, example.what, masked, flat)
        cut = tuple(self._cut(outputs))
        return OriginalRun(example, smaller, tuple(names), cut, bypassed)

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
        expected = BypassedRun(self._whole, shorter.removed, dtype).outputs(flat)
        actual = Run(shorter.graph_module, dtype).outputs(flat)
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
