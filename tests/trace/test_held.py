"""Inputs whose numbers a model reads in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneWarning, InputError, TraceError
from fxprune.plan import Plan

READS = pytest.warns(FxpruneWarning, match="the model reads the numbers in sizes, so the rewritten")


class Pieces(nn.Module):
    """Rows of several things after one another, and how many of each; kinds are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(5, 6)
        self.places = nn.Embedding(20, 6)
        self.inner, self.outer = nn.Linear(6, 14), nn.Linear(14, 6)

    def forward(
        self, x: torch.Tensor, sizes: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        places = torch.cat([torch.arange(int(size)) for size in sizes])
        if (sizes.max() > 3).item():
            places = places + 1
        x = x + self.places(places) + self.kinds(kinds)
        x = x.masked_fill(mask[:, None], 0.0)
        parts = [part.mean(0) for part in x.split(sizes.tolist())]
        return self.outer(F.relu(self.inner(torch.stack(parts))))


def pieces(sizes: tuple[int, ...] = (4, 2, 3), width: int = 6) -> dict[str, torch.Tensor]:
    count = sum(sizes)
    kinds, mask = torch.arange(count) % 5, torch.arange(count) % 4 == 1
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return {"x": x, "sizes": torch.tensor(sizes), "kinds": kinds, "mask": mask}


@pytest.fixture(scope="module")
def traced() -> fxprune.Traced:
    with READS:
        return fxprune.trace(Pieces().eval(), kwargs=pieces())


def test_only_what_is_read_is_held(traced: fxprune.Traced) -> None:
    assert traced.guards.held == ["sizes"]
    assert "forward" not in vars(traced.module)
    other = {**pieces(), "kinds": torch.zeros(9, dtype=torch.long), "x": torch.randn(9, 6)}
    for given in (pieces(), other):
        with torch.no_grad():
            assert torch.equal(traced.graph_module(**given), traced.module(**given))


def test_other_numbers_are_refused(traced: fxprune.Traced) -> None:
    with pytest.raises(InputError, match="sizes has other numbers than when the graph was captur"):
        traced.graph_module(**pieces((3, 3, 3)))


def pruned(traced: fxprune.Traced) -> tuple[Any, Plan]:
    graph = fxprune.discover(traced)
    (group,) = (g for g in graph.groups if g.kind == "mlp")
    plan = Plan.of(graph, {group.name: range(3, group.size)})
    return fxprune.rewrite(traced, plan), plan


def test_pruned_proven_and_opened_again(traced: fxprune.Traced, tmp_path: Path) -> None:
    small, plan = pruned(traced)
    assert fxprune.verify(traced, small, plan).relative_error < 1e-5
    folder = fxprune.save(small, tmp_path / "m", plan=plan, traced=traced)
    with torch.device("meta"):
        blank = Pieces()
    with READS:
        again: Any = fxprune.load(folder, model=blank)
    with torch.no_grad():
        assert torch.equal(again(**pieces()), small(**pieces()))
    with pytest.raises(InputError, match="sizes has other numbers"):
        again(**pieces((5, 1, 3)))


def test_compiled_it_refuses_too(traced: fxprune.Traced) -> None:
    program = torch.export.export(traced.graph_module, (), pieces(), strict=False).module()
    with torch.no_grad():
        assert torch.equal(program(**pieces()), traced.module(**pieces()))
        with pytest.raises(RuntimeError, match="sizes has other numbers"):
            program(**pieces((3, 3, 3)))


class Branch(nn.Module):
    def forward(self, x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 and flag.sum() > 0 else x


def test_what_no_held_input_mends_is_refused_as_before() -> None:
    """Numbers of what is measured are no settings."""
    with pytest.raises(TraceError, match=r"test_held.py:\d+: `return x \* 2 if x.sum\(\) > 0"):
        fxprune.trace(Branch(), (torch.randn(3, 4), torch.ones(3, dtype=torch.long)))


class Padded(nn.Module):
    """Pads to a multiple of 4, and looks whether it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 14), nn.Linear(14, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        mask = torch.cat([torch.ones(length), torch.zeros(-length % 4)])
        x = F.pad(x, (0, 0, 0, -length % 4))
        if mask.sum().item() < x.shape[1]:
            x = x + mask[:, None]
        return self.outer(F.relu(self.inner(x)))


@pytest.mark.parametrize("length", [7, 8])
def test_numbers_made_of_sizes_alone_are_read(length: int) -> None:
    x, model = torch.randn(2, length, 6), Padded().eval()
    with pytest.warns(FxpruneWarning, match=r"axis 1 \(sequence\) of args\[0\] is fixed"):
        traced = fxprune.trace(model, (x,))
    with torch.no_grad():
        assert torch.equal(traced.graph_module(x), model(x))
    assert not traced.guards.held
    with pytest.raises(InputError):
        traced.graph_module(torch.randn(2, length + 1, 6))


class Written(nn.Module):
    """Reads a size, and writes what it computes into numbers of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        values = self.inner(x)
        if (sizes.max() > 1).item():
            values = values + 1
        found = values.argmax(-1)[:2]
        rows = torch.full((2,), 1)
        if self.how == "setitem":
            rows[:2] = found
        elif self.how == "copy":
            rows[:2].copy_(found)
        elif self.how == "operator":
            rows += found
        elif self.how == "out":
            torch.maximum(found, found, out=rows)
        elif self.how == "scatter":
            rows.scatter_(0, found % 2, 3)
        else:
            rows = x.new_full((2,), 1, dtype=torch.long)
            rows[:2] = found
        return F.one_hot(rows, 12) * values[:1].repeat(1, 2)


@pytest.mark.parametrize("how", ["setitem", "copy", "operator", "out", "scatter"])
def test_data_written_into_numbers_is_refused(how: str) -> None:
    given = {"x": torch.randn(5, 6), "sizes": torch.tensor([2, 1])}
    with pytest.raises(TraceError, match=r"What runs there depends on values of the data"):
        fxprune.trace(Written(how).eval(), kwargs=given)


@pytest.mark.filterwarnings("ignore::fxprune.FxpruneWarning")
def test_data_written_into_what_is_made_of_it() -> None:
    made = fxprune.trace(
        Written("new").eval(), kwargs={"x": torch.randn(5, 6), "sizes": torch.tensor([2, 1])}
    )
    for _ in range(2):
        given = {"x": torch.randn(5, 6), "sizes": torch.tensor([2, 1])}
        with torch.no_grad():
            assert torch.equal(made.graph_module(**given), made.module(**given))
