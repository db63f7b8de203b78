"""ONNX models compute what the graph does, in ONNX Runtime, at other sizes than the example's."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers.integrations.moe  # noqa: F401  # which registers ops
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxprune
from fxprune import PruneConfig
from fxprune.errors import CheckpointError, FxpruneWarning, ServeError, TraceError
from fxprune.passes import PruneProgram
from fxprune.plan import Plan
from fxprune.serve import onnx as writer
from fxprune.serve.engine import engine
from fxprune.trace.export import captured
from tests.models import Perceptron
from tests.serve import fuzz
from tests.zoo import BY_NAME, built, traced

X = torch.randn(3, 20)


def halved(found: fxprune.Traced) -> fx.GraphModule:
    """Every group loses a third."""
    graph = fxprune.discover(found)
    kept = {
        g.name: tuple(range(g.size - max(g.least, g.size * 2 // 3), g.size)) for g in graph.groups
    }
    return fxprune.rewrite(found, Plan.of(graph, kept))


def small() -> fx.GraphModule:
    return halved(fxprune.trace(Perceptron().eval(), X))


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """An older file, that stays."""
    file = tmp_path / "m.onnx"
    file.write_text("older")
    yield file
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


class TestWithoutPackages:
    def test_they_are_named(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n: None if n.startswith("onnx") else found(n)
        )
        with pytest.raises(ServeError, match=r"needs onnx and onnxscript .*'fxprune\[onnx\]'"):
            fxprune.export(small(), file)


if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
    serve = pytest.mark.skip("install '.[onnx]'")
else:
    serve = pytest.mark.serve


def run(file: Path, *inputs: Tensor) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {
        each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)
    }
    names = [each.name for each in session.get_outputs()]
    values = session.run(None, feed)
    return {name: torch.from_numpy(np.asarray(x)) for name, x in zip(names, values, strict=True)}


@serve
@pytest.mark.parametrize(
    ("name", "attention", "output"),
    [
        ("resnet", "eager", "output"),
        pytest.param("vit", "sdpa", "logits", marks=pytest.mark.slow),
        ("bert", "sdpa", "logits"),
        pytest.param("llama", "sdpa", "logits", marks=pytest.mark.slow),  # as a program below
    ],
)
def test_models(name: str, attention: str, output: str, tmp_path: Path) -> None:
    entry = BY_NAME[name]
    graph = halved(traced(name, attention))
    file = fxprune.export(graph, tmp_path / "m.onnx", *entry.example())
    assert list(tmp_path.iterdir()) == [file]
    for size in ((5, 13), (3, 17), (1, 2)):
        args, kwargs = entry.example(*size)
        found = run(file, *args, *kwargs.values())
        with torch.no_grad():
            expected = graph(*args, **kwargs)
        expected = expected if isinstance(expected, Tensor) else expected.logits
        assert list(found) == [output]
        torch.testing.assert_close(found[output], expected, rtol=1e-4, atol=1e-4)


@serve
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's, of copies of its trees
@pytest.mark.parametrize(
    ("name", "attention", "apart"),
    [
        ("llama", "sdpa", False),
        pytest.param("resnet", "eager", True, marks=pytest.mark.slow),
        pytest.param("resnet", "eager", False, marks=pytest.mark.slow),
        pytest.param("llama", "sdpa", True, marks=pytest.mark.slow),
    ],
)
def test_a_smaller_program(name: str, attention: str, apart: bool, tmp_path: Path) -> None:
    """By ``torch.onnx.export`` itself, with every size free that was."""
    args, kwargs = BY_NAME[name].example()
    with captured(built(name, attention), args, kwargs) as capture:
        program = capture.program.run_decompositions() if apart else capture.program
    config = PruneConfig(
        pruning_ratio=0.3, criterion="magnitude", kinds=("mlp", "attention", "channel")
    )
    small = PruneProgram(config)(program).exported_program
    made = torch.onnx.export(small, dynamo=True, verbose=False)
    assert made is not None
    made.save(tmp_path / "m.onnx")
    for size in ((5, 13), (3, 17)):
        args, kwargs = BY_NAME[name].example(*size)
        with torch.no_grad():
            expected = pytree.tree_leaves(small.module()(*args, **kwargs))
        found = run(tmp_path / "m.onnx", *args, *kwargs.values())
        for one, two in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.body(x)
        return {"found": self.head(features.mean((2, 3))), "maps": (features, 3)}


@serve
def test_pictures_of_any_size_and_several_outputs(tmp_path: Path) -> None:
    graph = halved(fxprune.trace(Pictures().eval(), torch.randn(2, 3, 16, 16)))
    file = fxprune.export(graph, tmp_path / "m.onnx")
    for size in ((1, 3, 16, 16), (2, 3, 40, 24), (5, 3, 9, 31)):
        found = run(file, x := torch.randn(size))
        assert list(found) == ["found", "maps.0"]
        with torch.no_grad():
            expected = graph(x)
        torch.testing.assert_close(found["found"], expected["found"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["maps.0"], expected["maps"][0], rtol=1e-4, atol=1e-4)


class Short(nn.Module):
    """Takes rows in fours, 8 at least."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] < 8:
            return x
        return x.unflatten(0, (-1, 4)).sum(1)


@serve
def test_what_onnx_does_not_check_is_said(tmp_path: Path) -> None:
    import onnx

    with pytest.warns(FxpruneWarning, match="8 or more"):
        graph = fxprune.trace(Short(), torch.randn(12, 6)).graph_module
    file = fxprune.export(graph, tmp_path / "m.onnx", torch.randn(12, 6))
    (said,) = (p.value for p in onnx.load(file).metadata_props if p.key == "fxprune")
    assert "args[0].shape[0] is 8 or more" in said
    assert "% 4" in said


@serve
def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_text("older")
    assert fxprune.export(small(), file) == file
    assert run(file, X)["output"].shape == (3, 7)


@serve
def test_large_tensors_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_LARGEST", 10)
    graph = small()
    file = fxprune.export(graph, tmp_path / "m.onnx")
    assert {each.name for each in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    with torch.no_grad():
        torch.testing.assert_close(run(file, X)["output"], graph(X))


class Attends(nn.Module):
    """With a bias that all heads share, as T5 has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.bias = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.inner(x).chunk(3, -1)
        )
        bias = self.bias * torch.arange(x.shape[1], dtype=torch.float32)
        found = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.expand(-1, -1, x.shape[1], -1)
        )
        return found.transpose(1, 2).reshape(*x.shape[:2], -1)


class Mixture(nn.Module):
    """Rows of experts by their matrices; some experts have none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6, 5))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0)
        found: Tensor = torch.ops.transformers.grouped_mm_fallback(x, self.weight, ends)
        return found


@serve
@pytest.mark.filterwarnings("ignore:.*is fixed at 4:fxprune.errors.FxpruneWarning")  # experts
def test_what_the_exporter_has_no_form_for(tmp_path: Path) -> None:
    x = torch.randn(3, 5, 8)
    graph = fxprune.trace(Attends().eval(), x).graph_module
    found = run(fxprune.export(graph, tmp_path / "a.onnx", x), x[:2, :4])["output"]
    with torch.no_grad():
        torch.testing.assert_close(found, graph(x[:2, :4]), rtol=1e-4, atol=1e-4)
    rows, counts = torch.randn(7, 6), torch.tensor([3, 0, 4, 0])
    graph = fxprune.trace(Mixture().eval(), (rows, counts)).graph_module
    file = fxprune.export(graph, tmp_path / "b.onnx", (rows, counts))
    for other in ([0, 7, 0, 0], [1, 2, 3, 1], [0, 0, 0, 7]):
        counts = torch.tensor(other)
        with torch.no_grad():
            expected = graph(rows, counts)
        torch.testing.assert_close(run(file, rows, counts)["output"], expected)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x * 2


class Fills(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) + 1


@serve
@pytest.mark.parametrize(("model", "what"), [(Counts, "its buffer seen"), (Fills, "its input x")])
def test_a_state_is_refused(model: Any, what: str, file: Path) -> None:
    graph = fxprune.trace(model(), (X,)).graph_module
    with pytest.raises(ServeError, match=f"writes into {what}, and an ONNX model keeps no state"):
        fxprune.export(graph, file, X)


@serve
def test_what_the_exporter_makes_wrong_is_not_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.onnx.export

    def wrong(program: Any, **options: Any) -> Any:
        made = real(program, **options)
        (node, *_) = (n for n in made.model.graph if n.op_type == "Relu")
        node.op_type = "Sigmoid"
        return made

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(TraceError, match="does not compute what the graph does: output `output`"):
        fxprune.export(small(), file, X)


@serve
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(28, "No space left"), CheckpointError, "No space left"),
        (NotImplementedError("no such op"), ServeError, "cannot say this graph: .*no such op"),
    ],
)
def test_what_fails(
    error: Exception, kind: type[Exception], message: str, file: Path, monkeypatch: Any
) -> None:
    import onnx_ir

    def broken(*_: Any, **__: Any) -> None:
        raise error

    if isinstance(error, OSError):
        monkeypatch.setattr(onnx_ir, "save", broken)
    else:
        monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(kind, match=message):
        fxprune.export(small(), file, X)


@serve
def test_weights_on_meta(file: Path) -> None:
    with torch.device("meta"):
        graph = fxprune.trace(Perceptron().eval(), X.to("meta")).graph_module
    with pytest.raises(CheckpointError, match="is on meta"):
        fxprune.export(graph, file)


def in_onnx_runtime(how: str, path: Path, small: fx.GraphModule, example: Any) -> None:
    args, kwargs = example
    with torch.no_grad():
        expected = pytree.tree_leaves(small(*args, **kwargs))
    for one, two in zip(run(path, *args, *kwargs.values()).values(), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@serve
@pytest.mark.slow
def test_random_plans() -> None:
    draw = random.Random(1)
    models = [*BY_NAME, "wide-biases", "wide-window"]
    for seed in range(200):
        name = draw.choice(models)
        assert not fuzz.tried(engine("onnx"), name, seed, in_onnx_runtime, "m.onnx")


@serve
def test_an_op_without_a_form_is_told_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer.onnx_ops, "table", dict)
    with torch.device("meta"):
        given = (torch.empty(7, 6), torch.ones(4, dtype=torch.long))
        graph = fxprune.discover(fxprune.trace(Mixture().eval(), given))
    (why,) = engine("onnx").check(Plan.of(graph, {}), graph)
    assert "onnx cannot run this model: torch.onnx cannot say this graph" in why
    assert "grouped_mm_fallback" in why
