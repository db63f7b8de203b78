"""Names of engines, and what they refuse."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

import fxprune
from fxprune.config import PruneConfig
from fxprune.errors import ServeError
from fxprune.plan import Plan
from fxprune.select.target import Target
from fxprune.serve import engine as module
from fxprune.serve.engine import Engine, Pruned, check_name, engine, engines, register_engine
from tests.serve import blocks
from tests.serve.test_remote import llama


class Box(Engine):
    """Runs models whose MLPs are multiples of seven units wide."""

    name = "box"

    def target(self, graph: Any) -> Target:
        return Target(self.name, kinds=("mlp",), multiple_of={"mlp": 7})

    def write(self, pruned: Pruned, path: Path, **options: Any) -> str:
        path.write_text("box")
        return f"open {path}"


@pytest.fixture
def box() -> Iterator[None]:
    register_engine(Box())
    yield
    del module._REGISTERED["box"]


@pytest.mark.usefixtures("box")
def test_ones_own() -> None:
    assert "box" in engines()
    assert isinstance(engine("box"), Box)
    with pytest.raises(ServeError, match="there is an engine 'box' already"):
        register_engine(Box())
    assert PruneConfig(target="box").target == "box"


def test_names() -> None:
    with pytest.raises(ServeError, match="'llama-cpp'; did you mean llama"):
        check_name("llama-cpp")
    with pytest.raises(ServeError, match="no engine 'x': choose from transformers, "):
        engine("x")
    with pytest.raises(ServeError, match="did you mean vllm"):
        PruneConfig(target="vlm")


@pytest.mark.usefixtures("box")
def test_all_reasons_are_given() -> None:
    graph = llama()
    heads, units = (next(g.name for g in graph.groups if g.kind == k) for k in ("attention", "mlp"))
    engine("box").require(Plan.of(graph, {units: range(14)}), graph)
    with pytest.raises(ServeError) as caught:
        engine("box").require(Plan.of(graph, {units: range(8), heads: [0]}), graph)
    first, *reasons = str(caught.value).splitlines()
    assert first == "box cannot run what the plan leaves:"
    assert sorted(reasons) == sorted(
        [
            f"  {units} keeps 8 of 40: box takes multiples of 7",
            f"  {heads} keeps 1 of 2: box takes attention groups whole",
        ]
    )


class Counts(nn.Module):
    """Keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Any) -> torch.Tensor:
        self.seen.add_(1)
        found: torch.Tensor = self.linear(x)
        return found


class Reads(nn.Linear):
    """Takes a class."""

    def forward(self, x: Any) -> torch.Tensor:
        return super().forward(x.last_hidden_state)


def few(size: int) -> range:
    return range(size // 2)


FIRST, SECOND = "model.layers.0.mlp:units", "model.layers.1.mlp:units"
HEADS = "model.layers.1.self_attn:heads"
DIMS = {f"model.layers.{number}.self_attn:v_dim": few(16) for number in range(3)}
X = torch.empty(2, 4, device="meta")
# What each engine cannot say: a plan for Llama, or a model and its input; and in which words.
REFUSED: dict[str, tuple[Any, list[str]]] = {
    "transformers": ({FIRST: few(1024)}, [FIRST, "keeps 512", "one number of mlp units of 1024"]),
    "transformers-remote": (DIMS, ["takes head_dim groups whole"]),
    "llama.cpp": (DIMS, ["self_attn", "keeps 8 of 16", "takes head_dim groups whole"]),
    "nemotron-nas": ({SECOND: range(300)}, [SECOND, "keeps 300 of 1024", "multiples of 256"]),
    "mlx": ({SECOND: range(300)}, [SECOND, "keeps 300 of 1024", "multiples of 256"]),
    "vllm": ({HEADS: [0]}, [HEADS, "keeps 1 of 2", "takes attention groups whole"]),
    "onnx": ((Counts, X), ["the graph writes into its buffer seen"]),
    "torch": (
        (functools.partial(Reads, 4, 5), BaseModelOutput(last_hidden_state=X)),
        ["the graph takes a BaseModelOutput"],
    ),
}


@functools.cache
def without_weights() -> fxprune.DependencyGraph:
    with torch.device("meta"):
        return fxprune.discover(fxprune.trace(blocks.llama()))


@pytest.mark.filterwarnings("ignore:.*static sizes")  # of what is in a class
@pytest.mark.parametrize("name", engines())
def test_what_it_cannot_say_is_refused_without_weights(name: str) -> None:
    if name == "onnx" and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("install '.[onnx]'")
    (given, words), graph = REFUSED[name], without_weights()
    taken = Plan.of(graph, {g.name: few(1024) for g in graph.groups if g.kind == "mlp"})
    if name != "onnx":  # takes seconds
        assert engine(name).check(taken, graph) == []
    if isinstance(given, tuple):
        make, example = given
        with torch.device("meta"):
            graph = fxprune.discover(fxprune.trace(make().eval(), (example,)))
        given = {}
    why = engine(name).check(Plan.of(graph, given), graph)
    assert why
    for word in words:
        assert word in why[0]
    assert why[0].startswith(name) or name in why[0]
