"""Compiler passes for ``torch.fx.passes.infra.pass_manager.PassManager``.

Thin: a pass is a frozen dataclass whose fields are its options; the work is done by the functions
of the same names. Every pass returns a new GraphModule and leaves the one it was given untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.config import PruneConfig
from fxprune.data.calibrate import Calibration
from fxprune.data.loss_function import LossFunction
from fxprune.errors import CriterionError
from fxprune.groups.dependency import discover
from fxprune.importance.activations import can_observe
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.prune import prune
from fxprune.rewrite.rewrite import rewrite
from fxprune.trace import trace

# Where a pass records what it knows on the GraphModule it returns.
META = "fxprune"


@dataclass(frozen=True)
class _Pass(PassBase):
    """A pass whose ``ensures`` sees the module it returns.

    torch's own ``PassBase.__call__`` checks the postcondition on the module it was given.
    """

    args: Any = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, graph_module: fx.GraphModule) -> PassResult | None:
        """Check the precondition, run the pass, check the postcondition on its result."""
        self.requires(graph_module)
        result = self.call(graph_module)
        if result is not None:
            self.ensures(result.graph_module)
        return result

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The graph is well formed."""
        graph_module.graph.lint()


@dataclass(frozen=True)
class Discover(_Pass):
    """Put the dependency graph into ``graph_module.meta["fxprune"]``; the graph stays as it is.

    Args:
        args: example positional inputs; not needed for a module that ``torch.export`` made.
        kwargs: example keyword inputs.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Trace and discover."""
        graph_module.meta[META] = discover(trace(graph_module, self.args, self.kwargs))
        return PassResult(graph_module, False)


@dataclass(frozen=True)
class ApplyPlan(_Pass):
    """Rewrite to the sizes of a plan, see :func:`fxprune.rewrite`.

    Args:
        plan: what stays.
        share: share tensors that lose nothing with the module that is given.
    """

    plan: Plan = field(kw_only=True)
    share: bool = field(default=False, kw_only=True)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Trace and rewrite."""
        traced = trace(graph_module, self.args, self.kwargs)
        small = rewrite(traced, self.plan, share=self.share)
        small.meta[META] = self.plan
        return PassResult(small, bool(self.plan.kept or self.plan.removed))


@dataclass(frozen=True)
class Prune(_Pass):
    """Score, select, rewrite, verify and compensate, see :func:`fxprune.prune`.

    Args:
        config: how to prune.
        args: example positional inputs; not needed for a module that ``torch.export`` made.
        kwargs: example keyword inputs.
        calibration: data, as for :func:`fxprune.prune`; so are the fields below.
    """

    config: PruneConfig = field(default_factory=PruneConfig)
    args: Any = field(default=(), kw_only=True)
    kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    calibration: Any = field(default=None, kw_only=True)
    compensation_data: Calibration | None = field(default=None, kw_only=True)
    scores: Scores | None = field(default=None, kw_only=True)
    loss_fn: LossFunction | None = field(default=None, kw_only=True)
    share: bool = field(default=False, kw_only=True)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """There are modules to watch, if the criterion looks at their inputs.

        Raises:
            CriterionError: there are none.
        """
        criterion = self.config.make_criterion(causal=False) if self.scores is None else None
        if criterion is None or "inputs" not in criterion.needs:
            return
        if not any(map(can_observe, graph_module.modules())):
            raise CriterionError(
                f"{criterion!r} watches the inputs of modules, and this graph has none left: "
                "torch.export inlines them. Prune the original model with fxprune.prune, take a "
                "graph of torch.fx.symbolic_trace, or score with Taylor, Magnitude or Random"
            )

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Prune."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        result = prune(graph_module, **given)
        result.graph_module.meta[META] = result.plan
        return PassResult(result.graph_module, bool(result.plan.kept or result.plan.removed))
