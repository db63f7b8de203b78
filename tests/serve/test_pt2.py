"""Archives of pruned graphs run with torch alone and compute what the graph does."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput

import fxprune
from fxprune.errors import CheckpointError, FxpruneWarning, TraceError
from fxprune.plan import Plan
from fxprune.serve.engine import Pruned, engine
from tests.hf import tiny
from tests.marks import but_slow
from tests.models import ResidualConvNet
from tests.serve import fuzz
from tests.zoo import BY_NAME

ALONE = """
import sys
sys.modules["fxprune"] = sys.modules["transformers"] = None
import torch
file = sys.argv[1]
model = torch.export.load(file).module()
found = model(**torch.load(file + ".inputs"))
torch.save(found, file + ".found")
"""


def halved(model: nn.Module, *args: Any) -> fx.GraphModule:
    """Every group loses its first half."""
    traced = fxprune.trace(model, args)
    graph = fxprune.discover(traced)
    kept = {g.name: tuple(range(g.size // 2, g.size)) for g in graph.groups}
    return fxprune.rewrite(traced, Plan.of(graph, kept))


@pytest.fixture(scope="module")
def llama() -> fx.GraphModule:
    return halved(tiny.llama())


def loaded(file: Path) -> Any:
    return torch.export.load(file).module()


@pytest.mark.slow
def test_without_fxprune_and_transformers(llama: fx.GraphModule, tmp_path: Path) -> None:
    llama.train()
    file = fxprune.export(llama, tmp_path / "m.pt2")
    assert llama.training
    llama.eval()
    inputs = {"input_ids": torch.randint(0, tiny.VOCABULARY, (5, 17))}
    torch.save(inputs, f"{file}.inputs")
    done = subprocess.run([sys.executable, "-c", ALONE, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(f"{file}.found")
    assert list(found) == ["logits"]
    with torch.no_grad():
        assert torch.equal(found["logits"], llama(**inputs).logits)


@pytest.mark.parametrize("shape", but_slow([(1, 7), (3, 1)], (1, 7)))
def test_other_shapes(llama: fx.GraphModule, tmp_path: Path, shape: tuple[int, int]) -> None:
    model = loaded(fxprune.export(llama, tmp_path / "m.pt2"))
    ids = torch.randint(0, tiny.VOCABULARY, shape)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)["logits"], llama(input_ids=ids).logits)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    graph = fxprune.trace(tiny.llama(vocab_size=20_000)).graph_module
    file = fxprune.export(graph, tmp_path / "m.pt2")
    assert file.stat().st_size < 1.5 * 4 * 24 * 20_000


def test_a_model_not_of_transformers(tmp_path: Path) -> None:
    net = ResidualConvNet().eval()
    small = halved(net, torch.randn(2, 3, 16, 16))
    model = loaded(fxprune.export(small, tmp_path / "m.pt2"))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), small(images))


class Outputs(nn.Module):
    """What its outputs are is given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(6, 6), kind

    def forward(self, x: torch.Tensor) -> Any:
        y, z = self.linear(x), x + 1
        if self.kind == "plain":
            return {"y": [y, None], "z": (z,)}
        return BaseModelOutput(last_hidden_state=y, hidden_states=(y, z))


def test_outputs(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    for kind, names in (
        ("plain", None),
        ("class", ["last_hidden_state", "hidden_states.0", "hidden_states.1"]),
    ):
        graph = fxprune.trace(Outputs(kind), (x,)).graph_module
        found = loaded(fxprune.export(graph, tmp_path / kind))(x[:2])
        expected = graph(x[:2])
        assert list(found) == (names or list(expected))
        assert names or pytree.tree_structure(found) == pytree.tree_structure(expected)
        for one, two in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
            assert one is two or torch.equal(one, two)


def test_sizes_that_cannot_vary(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(4, 1)

    x = torch.randn(4, 3)
    with pytest.warns(FxpruneWarning, match="fixed at 4"):
        graph = fxprune.trace(Fixed(), (x,)).graph_module
    with pytest.warns(FxpruneWarning, match=r"m\.pt2: .*fixed at 4"):
        model = loaded(fxprune.export(graph, tmp_path / "m.pt2"))
    assert torch.equal(model(x), x + 1)


# What is refused; an older file stays


@pytest.fixture
def file(tmp_path: Path) -> Any:
    file = tmp_path / "m.pt2"
    file.write_text("older")
    yield file
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_weights_on_meta(file: Path) -> None:
    with torch.device("meta"):
        graph = fxprune.trace(tiny.llama()).graph_module
    with pytest.raises(CheckpointError, match="is on meta"):
        fxprune.export(graph, file)


def test_inputs(llama: fx.GraphModule, file: Path) -> None:
    with pytest.raises(TraceError, match="has no recorded example"):
        fxprune.export(fx.symbolic_trace(nn.Linear(3, 4)), file)
    with pytest.raises(TraceError, match="do not fit"):
        fxprune.export(llama, file, kwargs={"ids": torch.zeros(2, 5, dtype=torch.long)})
    with pytest.raises(TraceError, match=r"trace\(model\)\.graph_module"):
        fxprune.export(nn.Linear(3, 4), file)  # type: ignore[arg-type]


def test_an_input_of_a_class(file: Path) -> None:
    class Reads(nn.Module):
        def forward(self, x: BaseModelOutput) -> torch.Tensor:
            return x.last_hidden_state * 2

    given = BaseModelOutput(last_hidden_state=torch.randn(2, 5, 6))
    with pytest.warns(FxpruneWarning, match="static sizes"):
        graph = fxprune.trace(Reads(), (given,)).graph_module
    with pytest.raises(TraceError, match="takes a BaseModelOutput"):
        fxprune.export(graph, file, (given,))


def positive(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


def test_what_cannot_be_exported(file: Path) -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(positive, (graph.placeholder("x"),)))
    module = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(TraceError, match=r"cannot be exported at .*`return x if x\.sum\(\) > 0"):
        fxprune.export(module, file, (torch.randn(3, 4),))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(28, "No space left"), CheckpointError, "No space left"),
        (NotImplementedError("an op"), TraceError, "cannot save this graph: an op"),
    ],
)
def test_what_cannot_be_saved(
    llama: fx.GraphModule,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    def broken(program: object, stream: Any) -> None:
        stream.write(b"half")
        raise error

    monkeypatch.setattr(torch.export, "save", broken)
    with pytest.raises(kind, match=message):
        fxprune.export(llama, file)


def test_it_is_an_engine(tmp_path: Path) -> None:
    """Of any graph, and of a model that still is a module."""
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = torch.randn(3, 6)
    graph = fxprune.trace(net, x).graph_module
    found = engine("torch")
    said = found.write(Pruned(graph), tmp_path / "m.pt2", args=x)
    assert said == f"run it with torch.export.load({str(tmp_path / 'm.pt2')!r}).module()"
    assert torch.equal(loaded(tmp_path / "m.pt2")(x), net(x))
    groups = fxprune.discover(fxprune.trace(net, x))
    plan = Plan.of(groups, {g.name: (0, 1) for g in groups.groups})
    assert found.check(plan, groups) == engine("onnx").check(plan, groups) == []


def in_torch(how: str, path: Path, small: fx.GraphModule, example: Any) -> None:
    args, kwargs = example
    with torch.no_grad():
        expected, found = (
            pytree.tree_leaves(each(*args, **kwargs)) for each in (small, loaded(path))
        )
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_random_plans(count: int) -> None:
    draw = random.Random(1)
    models = ["resnet"] if count == 3 else [*BY_NAME, "wide-biases", "wide-window"]
    for seed in range(count):
        assert not fuzz.tried(engine("torch"), draw.choice(models), seed, in_torch, "m.pt2")
