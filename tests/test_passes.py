"""fxprune among other people's compiler passes."""

from __future__ import annotations

import abc
import dataclasses
import types
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune
from fxprune import PruneConfig, passes
from fxprune.errors import CriterionError, SelectionError, TraceError
from fxprune.passes import META, ApplyPlan, Discover, ProgramResult, Prune, PruneProgram
from fxprune.plan import Plan

X = torch.randn(5, 6)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 30)
        self.second = nn.Linear(30, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Residual(nn.Module):
    """Two residual branches, alike but for their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*_layers(units)) for units in (20, 30))
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.last(x)


def _layers(units: int) -> tuple[nn.Module, ...]:
    return nn.Linear(6, units), nn.ReLU(), nn.Linear(units, 6)


class CountNodes(PassBase):
    """Somebody else's pass."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        self.seen.append(len(graph_module.graph.nodes))
        return PassResult(graph_module, False)


def test_prune_runs_in_a_pass_manager_next_to_others() -> None:
    module = fx.symbolic_trace(Chain())
    before = {n: p.clone() for n, p in module.named_parameters()}
    counter = CountNodes()
    passes = [
        counter,
        Discover(args=(X,)),
        Prune(PruneConfig(pruning_ratio=0.4, criterion="magnitude"), args=(X,)),
        counter,
    ]
    result = PassManager(passes)(module)
    assert result.modified
    assert result.graph_module.first.out_features < 30
    assert isinstance(result.graph_module.meta[META], Plan)
    assert result.graph_module(X).shape == (5, 4)
    assert len(counter.seen) == 2
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())


def test_a_plan_is_a_pass() -> None:
    module = exported()
    graph = fxprune.discover(fxprune.trace(module))
    plan = Plan.of(graph, {graph.groups[0].name: (1, 4, 7)})
    result = ApplyPlan(plan=plan)(module)
    assert result is not None
    assert result.modified
    assert result.graph_module.get_parameter("first.weight").shape == (3, 6)


def test_discover_leaves_the_graph_alone() -> None:
    module = fx.symbolic_trace(Chain())
    result = Discover(args=(X,))(module)
    assert result is not None
    assert not result.modified
    assert [g.size for g in result.graph_module.meta[META].groups] == [30]


def test_passes_are_values() -> None:
    one = Prune(PruneConfig(pruning_ratio=0.2))
    assert one == Prune(PruneConfig(pruning_ratio="20%"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.config = PruneConfig()  # type: ignore[misc]


def test_what_a_user_sees_of_a_failure() -> None:
    """PassManager raises a bare Exception; ours is its cause, so a traceback shows both."""
    config = PruneConfig(pruning_ratio=0.999, criterion="magnitude")
    manager = PassManager([Prune(config, args=(X,))])
    with pytest.raises(Exception, match="'Prune' pass") as caught:
        manager(fx.symbolic_trace(Chain()))
    assert isinstance(caught.value.__cause__, SelectionError)
    assert "cannot be met" in str(caught.value.__cause__)


@dataclasses.dataclass(frozen=True)
class Breaks(Discover):
    """Returns a graph that is not well formed."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        broken = fx.GraphModule(nn.Module(), fx.Graph())
        node = broken.graph.placeholder("x")
        broken.graph.output(node)
        broken.graph.erase_node(broken.graph.output_node())
        broken.graph.call_module("nowhere")
        return PassResult(broken, True)


def test_ensures_sees_the_new_module() -> None:
    with pytest.raises((RuntimeError, AttributeError), match="nowhere"):
        Breaks()(fx.symbolic_trace(Chain()))


def exported() -> fx.GraphModule:
    sizes = {"x": {0: torch.export.Dim.DYNAMIC}}
    module = torch.export.export(Chain(), (X,), dynamic_shapes=sizes).module()
    assert isinstance(module, fx.GraphModule)
    return module


def test_everything_goes_through_to_prune() -> None:
    """The same as the function does, with a value for every option."""
    config = PruneConfig(
        budget=fxprune.Budget(macs=0.5),
        criterion=fxprune.Taylor(),
        kinds=("mlp", "channel"),
        batch_size=2,
        steps=2,
        compensation="bias",
        verify=False,
        multiple_of=2,
    )
    data: dict[str, Any] = {
        "calibration": {"x": X},
        "loss_fn": squared,
        "compensation_data": {"x": X[:4]},
    }
    module = fx.symbolic_trace(Chain())
    fields = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    expected = fxprune.prune(module, (X,), **fields, **data)
    result = Prune(config, args=(X,), **data)(module)
    assert result is not None
    assert result.graph_module.meta[META] == expected.plan
    assert expected.plan.kept
    pairs = zip(result.graph_module.parameters(), expected.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    again = Prune(PruneConfig(pruning_ratio=0.4), args=(X,), scores=expected.scores)(module)
    assert again is not None
    assert again.graph_module.meta[META].criterion == repr(fxprune.Taylor())


def test_depth_goes_through_to_prune() -> None:
    options: dict[str, Any] = {
        "depth": fxprune.Depth(remove=1, unit="mlp", keep_first=0, keep_last=0),
        "depth_criterion": fxprune.BlockInfluence(),
        "criterion": fxprune.Magnitude(),
        "pruning_ratio": 0.7,
    }
    module = fx.symbolic_trace(Residual())
    expected = fxprune.prune(module, (X,), **options, calibration={"x": X})
    assert len(expected.plan.removed) == 1
    assert expected.plan.kept
    each = Prune(PruneConfig(**options), args=(X,), calibration={"x": X})
    result = PassManager([each])(module)
    assert result.modified
    assert result.graph_module.meta[META] == expected.plan
    assert torch.equal(result.graph_module(X), expected.graph_module(X))
    again = ApplyPlan(args=(X,), plan=expected.plan)(module)
    assert again is not None
    assert torch.equal(again.graph_module(X), expected.graph_module(X))


def test_depth_alone_modifies_the_graph() -> None:
    module = fx.symbolic_trace(Residual())
    depth = fxprune.Depth(remove=1, unit="mlp", keep_first=0, keep_last=0)
    for criterion in (fxprune.Magnitude(p=1), fxprune.BlockInfluence()):
        config = PruneConfig(criterion=criterion, depth=depth)
        result = Prune(config, args=(X,), calibration={"x": X})(module)
        assert result is not None
        assert result.modified
        plan = result.graph_module.meta[META]
        assert plan.removed
        assert not plan.kept
        applied = ApplyPlan(args=(X,), plan=plan)(module)
        assert applied is not None
        assert applied.modified
    # A criterion that looks at no modules runs on a graph without any.
    sizes = {"x": {0: torch.export.Dim.DYNAMIC}}
    without = torch.export.export(Residual(), (X,), dynamic_shapes=sizes).module()
    assert isinstance(without, fx.GraphModule)
    result = Prune(config, calibration={"x": X})(without)
    assert result is not None
    assert result.graph_module.meta[META].removed


def squared(model: nn.Module, batch: Any) -> torch.Tensor:
    result: torch.Tensor = model(batch["x"]).square().mean()
    return result


def test_a_graph_without_modules_has_no_inputs_to_watch() -> None:
    prune = Prune(
        PruneConfig(pruning_ratio=0.4, criterion="wanda-sp"), args=(X,), calibration={"x": X},
        loss_fn=squared,
    )  # fmt: skip
    with pytest.raises(CriterionError, match=r"WandaSP\(.*torch.export inlines them"):
        prune(exported())
    result = prune(fx.symbolic_trace(Chain()))
    assert result is not None
    assert result.modified
    # What looks at weights alone does not mind.
    result = Prune(PruneConfig(pruning_ratio=0.4, criterion="magnitude"))(exported())
    assert result is not None
    assert result.modified


# programs


def program(**options: Any) -> torch.export.ExportedProgram:
    sizes = {"x": {0: torch.export.Dim.DYNAMIC}}
    return torch.export.export(Chain(), (X,), dynamic_shapes=sizes, **options)


MAGNITUDE = PruneConfig(pruning_ratio=0.4, criterion="magnitude")


class CountParameters:
    """Somebody else's pass over programs, in the form that executorch's have."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, exported_program: torch.export.ExportedProgram) -> ProgramResult:
        self.seen.append(sum(p.numel() for p in exported_program.parameters()))
        return ProgramResult(exported_program, False)


def test_programs_run_in_a_pass_manager() -> None:
    counter = CountParameters()
    result = PassManager([counter, PruneProgram(MAGNITUDE), counter])(program())
    assert result.modified
    small = result.graph_module
    assert isinstance(small, torch.export.ExportedProgram)
    plan = small.graph_module.meta[META]
    assert counter.seen == [plan.parameters_before, plan.parameters_after]
    assert small.module()(X[:2]).shape == (2, 4)


class ExportedProgramPassBase(abc.ABC):
    """The contract of executorch's class of this name; its manager asks for an instance."""

    def __call__(self, exported_program: Any) -> Any:
        self.requires(exported_program)
        result = self.call(exported_program)
        self.ensures(exported_program)
        return result

    @abc.abstractmethod
    def call(self, exported_program: Any) -> Any: ...

    def requires(self, exported_program: Any) -> None:  # noqa: B027
        """Nothing by default."""

    def ensures(self, exported_program: Any) -> None:  # noqa: B027
        """Nothing by default."""


def test_the_contract_of_executorch() -> None:
    each = PruneProgram(MAGNITUDE)
    assert not isinstance(each, ExportedProgramPassBase)
    ExportedProgramPassBase.register(PruneProgram)
    assert isinstance(each, ExportedProgramPassBase)
    given = program()
    result = ExportedProgramPassBase.__call__(each, given)
    assert result.modified
    assert result.exported_program is not given
    result.exported_program.validate()
    # Without that line its manager gives the graph of the program, lifted parameters and all.
    with pytest.raises(TraceError, match=r"ExportedProgramPassBase\.register\(PruneProgram\)"):
        each(given.graph_module)  # type: ignore[arg-type]


def test_a_program_that_loses_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given = program()
    nothing = Plan.of(fxprune.discover(fxprune.trace(given)), {})
    monkeypatch.setattr(passes, "prune", lambda *_, **__: types.SimpleNamespace(plan=nothing))
    result = PruneProgram(MAGNITUDE)(given)
    assert not result.modified
    assert result.exported_program is given


def test_a_program_has_no_modules_to_watch() -> None:
    each = PruneProgram(PruneConfig(pruning_ratio=0.4, criterion="wanda-sp"))
    with pytest.raises(CriterionError, match=r"WandaSP\(.*torch.export inlines them"):
        each(program())


def test_both_passes_take_the_same() -> None:
    """Taylor with data and compensation, on a program and on its module."""
    config = PruneConfig(pruning_ratio=0.4, criterion=fxprune.Taylor(), compensation="bias")
    data: dict[str, Any] = {"calibration": {"x": X}, "loss_fn": squared}
    given = program()
    small = PruneProgram(config, **data)(given).exported_program
    same = Prune(config, **data)(given.module())  # type: ignore[arg-type]
    assert same is not None
    assert small.graph_module.meta[META] == same.graph_module.meta[META]
    assert dict(small.state_dict).keys() == dict(same.graph_module.named_parameters()).keys()
    for name, tensor in same.graph_module.named_parameters():
        assert torch.equal(small.state_dict[name], tensor)


def test_blocks_of_a_program() -> None:
    given = torch.export.export(Residual(), (X,))
    depth = fxprune.Depth(remove=1, unit="mlp", keep_first=0, keep_last=0)
    config = PruneConfig(criterion=fxprune.Magnitude(p=1), depth=depth)
    small = PruneProgram(config)(given).exported_program
    assert len(small.graph_module.meta[META].removed) == 1
    assert set(given.state_dict) - set(small.state_dict) == {
        f"layers.0.{place}.{name}" for place in (0, 2) for name in ("weight", "bias")
    }
    assert small.module()(X).shape == (5, 4)
