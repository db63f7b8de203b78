"""A smaller program takes the place of the original one."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

import fxprune
from fxprune import PruneConfig
from fxprune.errors import OracleError, TraceError
from fxprune.passes import META, PruneProgram
from fxprune.serve import program as programs
from tests.serve.programs import everything, exported, inputs, run

# torch's own, of copies of its trees
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

HALF = PruneConfig(pruning_ratio=0.3, criterion="magnitude")


@pytest.fixture(scope="module", params=[False, True], ids=["as exported", "decomposed"])
def pair(request: pytest.FixtureRequest) -> tuple[ExportedProgram, ExportedProgram]:
    """A program and what pruning makes of it."""
    original = everything(decomposed=request.param)
    return original, PruneProgram(HALF)(original).exported_program


def same(one: Any, two: Any) -> None:
    assert pytree.tree_structure(one) == pytree.tree_structure(two)
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(two), strict=True):
        torch.testing.assert_close(a, b)


Pair = tuple[ExportedProgram, ExportedProgram]


def test_the_signature_stays(pair: Pair) -> None:
    original, small = pair
    mine, theirs = small.graph_signature, original.graph_signature
    assert [(s.kind, s.target, s.persistent) for s in mine.input_specs] == [
        (s.kind, s.target, s.persistent) for s in theirs.input_specs
    ]
    outputs = [(s.kind, s.target) for s in theirs.output_specs]
    assert [(s.kind, s.target) for s in mine.output_specs] == outputs
    assert mine.user_inputs == theirs.user_inputs
    assert small.call_spec == original.call_spec
    assert small.dialect == original.dialect
    assert small.verifiers == original.verifiers
    if original.dialect == "ATEN":
        kinds = {kind for kind, _ in outputs}
        assert {OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION} < kinds
    (kept,) = small.graph_module.meta[META].kept.values()
    sizes = {name: list(t.shape) for name, t in small.state_dict.items()}
    assert sizes["up.weight"] == [len(kept), 6]
    assert sizes["norm.running_var"] == sizes["seen"] == [len(kept)] != [30]
    assert list(small.constants) == list(original.constants)
    assert small.constants["scale"].shape == small.constants["shift"].shape == (len(kept),)
    assert {spec.kind for spec in mine.input_specs} == {
        InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.USER_INPUT,
    }  # fmt: skip


def test_tied_and_unread_tensors_stay(pair: Pair) -> None:
    original, small = pair
    assert list(small.state_dict) == list(original.state_dict)
    assert small.state_dict["up.weight"] is small.state_dict["other.weight"]
    assert torch.equal(small.state_dict["unread"], original.state_dict["unread"])
    assert "norm.num_batches_tracked" in small.state_dict


def test_ranges_stay(pair: Pair) -> None:
    _, small = pair
    (bounds,) = small.range_constraints.values()
    assert (bounds.lower, bounds.upper) == (2, 64)
    for rows in (2, 64):
        assert run(small, rows)[0]["z"].shape == (rows, 6)
    for program in pair:
        with pytest.raises(AssertionError, match="64"):
            run(program, 65)
    x, y = (node.meta["val"].shape[0] for node in small.graph.nodes if node.name in "xy")
    assert x.node.expr == y.node.expr, "both have one number of rows"


def test_it_is_proven_against_the_original(pair: Pair) -> None:
    original, small = pair
    traced = fxprune.trace(original)
    plan = small.graph_module.meta[META]
    report = fxprune.verify(traced, small.module(), plan)
    assert len(report.outputs) == 8, "four outputs at two sizes"
    assert report.tensors >= 8
    damaged = copy.deepcopy(small.module())
    with torch.no_grad():
        damaged.get_parameter("down.weight")[0, 0] += 0.5
    with pytest.raises(OracleError, match="smaller model"):
        fxprune.verify(traced, damaged, plan)


def test_what_it_writes_into(pair: Pair) -> None:
    _, small = pair
    (kept,) = small.graph_module.meta[META].kept.values()
    before, mine = (copy.deepcopy(program.module()) for program in pair)
    with torch.no_grad():
        for rows in (5, 7):
            for module in (before, mine):
                args, kwargs = inputs(rows)
                module(*args, **kwargs)
                assert torch.equal(kwargs["y"], inputs(rows)[1]["y"] + 1)
    torch.testing.assert_close(mine.seen, before.seen[list(kept)])
    assert bool(mine.seen.count_nonzero())


def test_the_original_is_as_it_was() -> None:
    original = everything()
    before, text = copy.deepcopy(original.state_dict), str(original)
    small = PruneProgram(HALF)(original).exported_program
    assert str(original) == text
    same(original.state_dict, before)
    with torch.no_grad():
        for tensor in small.state_dict.values():
            tensor.add_(1)
    same(original.state_dict, before)


def test_where_it_goes_next(pair: Pair) -> None:
    _, small = pair
    expected = run(small)
    stream = io.BytesIO()
    torch.export.save(small, stream)
    stream.seek(0)
    loaded = torch.export.load(stream)
    same(run(loaded), expected)
    assert [*loaded.range_constraints.values()] == [*small.range_constraints.values()]
    same(run(small.run_decompositions()), expected)
    args, kwargs = inputs()
    with torch.no_grad():
        same(torch.export.unflatten(copy.deepcopy(small))(*args, **kwargs), expected)
    # Pruned once more, what was loaded too.
    plan = small.graph_module.meta[META]
    (kept,) = plan.kept.values()
    again = PruneProgram(HALF)(loaded).exported_program
    assert again.state_dict["up.weight"].shape[0] < len(kept)
    assert again.state_dict["up.weight"] is again.state_dict["other.weight"]
    assert [*again.range_constraints.values()] == [*small.range_constraints.values()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
def test_compilers(pair: Pair, tmp_path: Any) -> None:
    """Generated C++ code: minutes on a slow machine."""
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    small = copy.deepcopy(pair[1])
    args, kwargs = inputs()
    with torch.no_grad():
        same(torch.compile(small.module(), fullgraph=True)(*args, **kwargs), run(pair[1]))
        packed = aoti_compile_and_package(small, package_path=str(tmp_path / "m.pt2"))
        for rows in (5, 9):
            args, kwargs = inputs(rows)
            found = aoti_load_package(packed)(*args, **kwargs)
            same(found[0]["z"], run(pair[1], rows)[0]["z"])


# sizes


class Pairs(nn.Module):
    """Rows come in twos."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 30), nn.Linear(60, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.relu(self.up(x)).unflatten(0, (-1, 2)).flatten(1)
        return self.down(hidden) + y


def bounds(program: ExportedProgram, name: str) -> tuple[str, Any]:
    """How often a symbol is in the first size of an input, and its range."""
    (node,) = (n for n in program.graph.nodes if n.name == name)
    expression = node.meta["val"].shape[0].node.expr
    return str(expression.xreplace(dict.fromkeys(expression.free_symbols, 1))), (
        program.range_constraints[expression]
    )


def test_a_size_that_is_a_multiple() -> None:
    rows = Dim("rows", min=2, max=50)
    shapes = {"x": {0: 2 * rows}, "y": {0: rows}}
    original = exported(Pairs(), torch.randn(6, 6), torch.randn(3, 4), dynamic_shapes=shapes)
    small = PruneProgram(HALF)(original).exported_program
    assert bounds(small, "x") == bounds(original, "x")
    assert bounds(small, "y") == bounds(original, "y")
    assert small.module()(torch.randn(10, 6), torch.randn(5, 4)).shape == (5, 4)
    with pytest.raises((AssertionError, RuntimeError)):
        small.module()(torch.randn(9, 6), torch.randn(5, 4))


MLP = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4))


@pytest.mark.parametrize("dim", [None, Dim.AUTO, Dim.DYNAMIC, Dim("any"), Dim("some", min=3)])
def test_the_least_size_is_that_of_the_original(dim: Any) -> None:
    shapes = None if dim is None else ({0: dim},)
    original = exported(MLP, torch.randn(5, 6), dynamic_shapes=shapes)
    small = PruneProgram(HALF)(original).exported_program
    assert [*small.range_constraints.values()] == [*original.range_constraints.values()]
    for rows in (1, 2, 3, 9):
        answers = []
        for program in (original, small):
            try:
                answers.append(tuple(program.module()(torch.randn(rows, 6)).shape))
            except (AssertionError, RuntimeError):
                answers.append(())
        assert answers[0] == answers[1], rows


class Turned(nn.Module):
    """torch's kernel for the norm lies otherwise than the decomposed op says."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 30), nn.BatchNorm1d(30), nn.Linear(30, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x).mT).mT)


def test_a_program_for_generated_code_only() -> None:
    original = exported(Turned(), torch.randn(5, 7, 6)).run_decompositions()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        original.module()(torch.randn(5, 7, 6))
    small = PruneProgram(HALF)(original).exported_program
    (kept,) = small.graph_module.meta[META].kept.values()
    assert small.state_dict["norm.running_var"].shape == (len(kept),)
    assert {n.target for n in small.graph.nodes} <= {n.target for n in original.graph.nodes}


# what is refused


def test_a_program_that_is_not_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    real = programs._renewed

    def damaged(program: ExportedProgram, original: ExportedProgram) -> ExportedProgram:
        (relu,) = (n for n in program.graph.nodes if "relu" in str(n.target))
        relu.target = torch.ops.aten.sigmoid.default
        return real(program, original)

    monkeypatch.setattr(programs, "_renewed", damaged)
    original = exported(MLP, torch.randn(5, 6))
    with pytest.raises(TraceError, match="does not compute"):
        PruneProgram(HALF)(original)
