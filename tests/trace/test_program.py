"""Programs are traced as modules are."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._export.verifier import Verifier
from torch.export import Dim, ExportedProgram

import fxprune
from fxprune.errors import InputError, TraceError

X = torch.randn(5, 6)


class Tied(nn.Module):
    """One weight under two names, at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(6, 12), nn.Linear(12, 12)
        self.last = nn.Linear(6, 12, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.middle(torch.relu(self.first(x))))
        return hidden @ self.last.weight


@pytest.fixture
def program() -> ExportedProgram:
    shapes = {"x": {0: Dim("rows", max=30)}}
    return torch.export.export(Tied().eval(), (X,), dynamic_shapes=shapes)


def loaded(program: ExportedProgram) -> ExportedProgram:
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    return torch.export.load(stream)


def sites(program: Any, *args: Any) -> set[Any]:
    graph = fxprune.discover(fxprune.trace(program, *args))
    return {(g.kind, g.size, frozenset(map(str, g.sites))) for g in graph.groups}


def test_groups_are_those_of_the_module(program: ExportedProgram) -> None:
    expected = sites(Tied().eval(), (X,))
    assert expected
    assert sites(program) == expected
    assert sites(loaded(program)) == expected, "loading takes tied weights apart"


def test_inputs_and_sizes_are_those_of_the_program(program: ExportedProgram) -> None:
    traced = fxprune.trace(program)
    assert traced.args[0] is X
    assert traced.guards.ranges == {"s77": (1, 30)}
    given = torch.randn(7, 6)
    for each in (given, (given,)):
        assert fxprune.trace(program, each).args == (given,)
    program.example_inputs = None
    assert fxprune.trace(program).args[0].shape == X.shape


def test_tied_weights_are_one(program: ExportedProgram) -> None:
    for each in (program, loaded(program)):
        traced = fxprune.trace(each)
        assert traced.canonical("last.weight") == "first.weight"
        assert len(list(traced.module.parameters())) == 4


def test_the_model_is_the_module_of_the_program(program: ExportedProgram) -> None:
    traced = fxprune.trace(program)
    graph = fxprune.discover(traced)
    plan = fxprune.Plan.of(graph, {g.name: tuple(range(g.size - 1)) for g in graph.groups})
    small = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, small, plan).trace == "compared with the model"


def test_what_was_lowered_is_refused(program: ExportedProgram) -> None:
    class Edge(Verifier):
        dialect = "EDGE"

    program._verifiers = [Edge]
    with pytest.raises(TraceError, match=r"dialect EDGE.*prune what torch\.export gives"):
        fxprune.trace(program)


class Squared(nn.Module):
    """Asks for the square of a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x) if x.shape[0] * x.shape[0] > 8 else x.repeat(1, 2)
        return self.last(hidden)


def test_squares_of_sizes_are_asked_again() -> None:
    with pytest.warns(fxprune.FxpruneWarning, match=r"\(args\[0\].shape\[0\] \*\* 2\) > 8"):
        traced = fxprune.trace(Squared().eval(), X)
    assert traced.graph_module(torch.randn(9, 6)).shape == (9, 4)
    with pytest.raises(InputError, match=r"captured for sizes with .* > 8"):
        traced.graph_module(torch.randn(2, 6))


class InTraining(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_programs_of_training_are_refused(decomposed: bool) -> None:
    model = InTraining()
    norms = torch.export.export(nn.Sequential(*model.layers[:2]).train(), (X,))
    drops = torch.export.export(nn.Sequential(model.layers[0], nn.Dropout(0.5)).train(), (X,))
    if decomposed:
        norms, drops = norms.run_decompositions(), drops.run_decompositions()
    with pytest.raises(TraceError, match=r"running statistics .*batchnorm.py.*model\.eval"):
        fxprune.trace(norms)
    with pytest.raises(TraceError, match=r"drops at random at .*model\.eval"):
        fxprune.trace(drops)
    fxprune.trace(torch.export.export(model.eval(), (X,)))


def test_a_norm_that_is_always_in_training_is_refused() -> None:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.norm.running_mean, self.norm.running_var
            return nn.functional.batch_norm(x, mean, var, training=True)

    model = Always().eval()
    with pytest.raises(TraceError, match="Always updates the running statistics"):
        fxprune.trace(model, X)
    assert not bool(model.norm.running_mean.count_nonzero())
