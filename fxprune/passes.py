"""Compiler passes, for ``torch.fx.passes.infra.pass_manager.PassManager`` and for programs.

Thin: a pass is a frozen dataclass whose fields are its options; the work is done by the functions
of the same names. Every pass returns a new GraphModule, or :class:`PruneProgram` a new
``ExportedProgram``, and leaves the one it was given untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.config import PruneConfig
from fxprune.data.calibrate import Calibration
from fxprune.data.loss_function import LossFunction
from fxprune.errors import CriterionError, TraceError
from fxprune.groups.dependency import discover
from fxprune.importance.activations import can_observe
from fxprune.importance.scores import Scores
from fxprune.plan import Plan
from fxprune.prune import prune
from fxprune.result import PruneResult
from fxprune.rewrite.rewrite import rewrite
from fxprune.serve.program import like
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
        return PassResult(small, _changes(self.plan))


@dataclass(frozen=True)
class _Options:
    """How to prune: what both passes that do take.

    Args:
        config: how to prune.
        args: example positional inputs; not needed for what ``torch.export`` made.
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

    def _check(self, module: nn.Module) -> None:
        criterion = self.config.make_criterion(causal=False) if self.scores is None else None
        if criterion is None or "inputs" not in criterion.needs:
            return
        if not any(map(can_observe, module.modules())):
            raise CriterionError(
                f"{criterion!r} watches the inputs of modules, and this graph has none left: "
                "torch.export inlines them. Prune the original model with fxprune.prune, take a "
                "graph of torch.fx.symbolic_trace, or score with Taylor, Magnitude or Random"
            )

    def _prune(self, model: nn.Module | ExportedProgram) -> PruneResult:
        return prune(model, **{each.name: getattr(self, each.name) for each in fields(self)})


@dataclass(frozen=True)
class Prune(_Options, _Pass):
    """Score, select, rewrite, verify and compensate, see :func:`fxprune.prune`.

    Args:
        config: how to prune.
        args: example positional inputs; not needed for a module that ``torch.export`` made.
        kwargs: example keyword inputs.
        calibration: data, as for :func:`fxprune.prune`; so are the fields below.
    """

    def requires(self, graph_module: fx.GraphModule) -> None:
        """There are modules to watch, if the criterion looks at their inputs.

        Raises:
            CriterionError: there are none.
        """
        self._check(graph_module)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Prune."""
        result = self._prune(graph_module)
        result.graph_module.meta[META] = result.plan
        return PassResult(result.graph_module, _changes(result.plan))


@dataclass(frozen=True)
class ProgramResult:
    """What a pass over programs gives.

    Attributes:
        exported_program: the program.
        modified: whether it is another than the one that was given.
    """

    exported_program: ExportedProgram
    modified: bool

    @property
    def graph_module(self) -> ExportedProgram:
        """The program again: what torch's ``PassManager`` hands to the next pass."""
        return self.exported_program


@dataclass(frozen=True)
class PruneProgram(_Options):
    """Prune a program: an ``ExportedProgram`` in, a smaller one out.

    What comes out takes and gives what the original does, for the same sizes, under the same names
    of parameters, buffers and constants, and is in the same dialect: torch's own ops, decomposed if
    the original was. Its graph module's ``meta["fxprune"]`` is the plan.

    It has the form of executorch's ``ExportedProgramPassBase``, without needing it: register the
    class there, and ``ExportedProgramPassManager`` runs it.

    Args:
        config: how to prune.
        args: example positional inputs; those that the program was exported with if left out.
        kwargs: example keyword inputs.
        calibration: data, as for :func:`fxprune.prune`; so are the fields below.
    """

    def __call__(self, exported_program: ExportedProgram) -> ProgramResult:
        """Check the precondition, run the pass, check the postcondition on its result."""
        self.requires(exported_program)
        result = self.call(exported_program)
        self.ensures(result.exported_program)
        return result

    def requires(self, exported_program: ExportedProgram) -> None:
        """It is a program, and the criterion watches no modules, of which it has none.

        Raises:
            TraceError: it is something else.
            CriterionError: the criterion watches modules.
        """
        if not isinstance(exported_program, ExportedProgram):
            raise TraceError(
                f"PruneProgram takes an ExportedProgram, not a {type(exported_program).__name__}; "
                "a graph is for Prune. In executorch's ExportedProgramPassManager, register the "
                "class first: ExportedProgramPassBase.register(PruneProgram)"
            )
        self._check(exported_program.graph_module)

    def call(self, exported_program: ExportedProgram) -> ProgramResult:
        """Prune."""
        result = self._prune(exported_program)
        if not _changes(result.plan):
            return ProgramResult(exported_program, False)
        program = like(
            exported_program,
            result.graph_module,
            result.traced,
            share=self.share,
            verify=self.config.verify,
        )
        program.graph_module.meta[META] = result.plan
        return ProgramResult(program, True)

    def ensures(self, exported_program: ExportedProgram) -> None:
        """The graph is well formed, and the program passes the verifier of its dialect."""
        exported_program.graph_module.graph.lint()
        exported_program.validate()  # type: ignore[no-untyped-call]


def _changes(plan: Plan) -> bool:
    return bool(plan.kept or plan.removed)
