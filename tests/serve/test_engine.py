"""Names of engines, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fxprune.config import PruneConfig
from fxprune.errors import ServeError
from fxprune.plan import Plan
from fxprune.select.target import Target
from fxprune.serve import engine as module
from fxprune.serve.engine import Engine, Pruned, check_name, engine, engines, register_engine
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
