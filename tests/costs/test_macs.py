"""Multiply-accumulates against a counter that watches the ops run, and against formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.axes.dims import Dim
from fxprune.costs import CostError, MacCount, macs
from fxprune.costs.sizes import _solved
from fxprune.groups.dependency import DependencyGraph
from fxprune.measure import report
from fxprune.plan import Plan
from tests.llama import tiny_llama
from tests.test_conformance import discovered, one_backend
from tests.zoo import BY_NAME, built

BATCH, LENGTH = 3, 17


def unseen(model: Any) -> int:
    """What torch's counter does not know: matrices chosen by expert, two for each token.

    Three matrices an expert, of which two are one tensor (experts, 2 x inner, hidden).
    """
    matrices = (p for n, p in model.named_parameters() if n.endswith("down_proj") and p.ndim == 3)
    return sum(2 * 3 * p.shape[1] * p.shape[2] * BATCH * LENGTH for p in matrices)


def inputs(name: str) -> dict[str, Any]:
    args, kwargs = BY_NAME[name].example(BATCH, LENGTH)
    if "decoder_input_ids" in kwargs:
        kwargs["decoder_input_ids"] = kwargs["input_ids"]
    return {"args": args, "kwargs": kwargs}


@one_backend("llama", "gpt2", "t5")
def test_the_whole_model(name: str, attention: str) -> None:
    graph = discovered(name, attention)
    counted = macs(graph, batch=BATCH, length=LENGTH)
    seen = report.macs(graph.traced.graph_module, **inputs(name))
    hidden = unseen(graph.traced.graph_module)
    assert counted == seen + hidden
    if not hidden:
        assert counted == report.macs(built(name, attention), **inputs(name))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BY_NAME)
def test_rewritten_models(name: str, seed: int) -> None:
    attention = BY_NAME[name].backends[-1]
    graph = discovered(name, attention)
    choice = np.random.default_rng(seed)
    kept = {g.name: choice.integers(min(2, g.size), g.size, endpoint=True) for g in graph.groups}
    plan = Plan.of(graph, {group: tuple(range(count)) for group, count in kept.items()})
    small = fxprune.rewrite(graph.traced, plan)
    counted = macs(graph, plan.kept_counts(graph), batch=BATCH, length=LENGTH)
    assert counted == report.macs(small, **inputs(name)) + unseen(small)


@one_backend()
def test_unit_costs_are_differences(name: str, attention: str) -> None:
    graph = discovered(name, attention)
    dims = [group.dim for group in graph.groups]
    count = MacCount(graph, dims, BATCH, LENGTH)
    counts = {dim: max(1, dim.size - 1 - i % 2) for i, dim in enumerate(dims)}
    assert count.total(counts) == macs(graph, counts, BATCH, LENGTH)
    for dim in dims:
        fewer = macs(graph, {**counts, dim: counts[dim] - 1}, BATCH, LENGTH)
        assert count.unit_cost(dim, counts, -1) == fewer - count.total(counts)


def test_eager_and_fused_attention_cost_the_same() -> None:
    assert macs(discovered("llama", "eager")) == macs(discovered("llama", "sdpa"))


def llama(kv: int) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama(num_key_value_heads=kv)))


# single ops, against torch's counter


class Op(nn.Module):
    """One op on a value and a weight."""

    def __init__(self, op: Any, *shape: int) -> None:
        super().__init__()
        self.op, self.weight = op, nn.Parameter(torch.zeros(*shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.op(x, self.weight)
        return result


OPS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "matmul": (lambda x, w: x @ w, (6, 7)),
    "broadcast": (lambda x, w: x @ w, (2, 1, 6, 7)),
    "einsum": (lambda x, w: torch.einsum("bli,oi->blo", x, w), (7, 6)),
    "einsum to a vector": (lambda x, w: torch.einsum("bli,oi->bo", x, w), (7, 6)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=([2], [1])), (7, 6)),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x @ x.mT, x) + w, (6,)),
    "conv1d": (lambda x, w: functional.conv1d(x.mT, w, padding=1, groups=2), (4, 3, 3)),
    "transposed": (lambda x, w: functional.conv_transpose1d(x.mT, w, stride=2), (6, 3, 4)),
    "attention": (
        lambda x, w: functional.scaled_dot_product_attention(*[x[:, None] * w] * 3),
        (6,),
    ),
}


@pytest.mark.filterwarnings("ignore::fxprune.errors.FxpruneWarning")
@pytest.mark.parametrize("name", OPS)
def test_single_ops(name: str) -> None:
    op, shape = OPS[name]
    model = Op(op, *shape).eval()
    graph = fxprune.discover(fxprune.trace(model, (torch.zeros(4, 9, 6),)))
    expected = report.macs(model, (torch.zeros(3, 5, 6),))
    assert expected
    assert macs(graph, batch=3, length=5) == expected


@pytest.mark.filterwarnings("ignore::fxprune.errors.FxpruneWarning")
@pytest.mark.parametrize(
    "model",
    [
        Op(lambda x, w: torch.nn.functional.bilinear(x, x, w), 5, 6, 6),
        Op(lambda x, w: torch.cdist(x, w), 7, 6),
    ],
)
def test_ops_with_products_inside_are_refused(model: nn.Module) -> None:
    graph = fxprune.discover(fxprune.trace(model.eval(), (torch.zeros(4, 9, 6),)))
    with pytest.raises(CostError, match=r"bilinear|cdist"):
        macs(graph, length=9)


@pytest.mark.filterwarnings("ignore::fxprune.errors.FxpruneWarning")
def test_recurrent_layers_by_hand() -> None:
    """Batch 3, 9 steps; every matrix once a step, those of both directions and of every layer."""
    model = nn.Sequential(nn.Linear(6, 4), nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True))
    graph = fxprune.discover(fxprune.trace(model.eval(), (torch.zeros(4, 9, 6),)))
    first, second = 2 * 4 * 5 * (4 + 5), 2 * 4 * 5 * (10 + 5)
    assert macs(graph, batch=3, length=9) == 3 * 9 * (6 * 4 + first + second)
    cell = nn.GRUCell(6, 5)
    graph = fxprune.discover(fxprune.trace(cell.eval(), (torch.zeros(4, 6),)))
    assert macs(graph, batch=3, length=1) == 3 * 3 * 5 * (6 + 5)


# sizes


def test_a_batch_and_a_length() -> None:
    graph = llama(3)
    assert macs(graph, batch=7) == 7 * macs(graph)
    one, two, three = (macs(graph, length=n) for n in (1, 2, 3))
    assert three - 2 * two + one == 2 * 2 * 2 * 6 * 6  # attention alone is quadratic


@pytest.mark.parametrize("size", [{"batch": 0}, {"length": -1}])
def test_sizes_are_positive(size: dict[str, int]) -> None:
    with pytest.raises(CostError, match="positive"):
        macs(llama(3), **size)


def test_sizes_that_are_multiples_of_a_symbol() -> None:
    s, other = sympy.symbols("s other", integer=True)
    assert _solved(s, 7, "length") == {s: 7}
    assert _solved(2 * s + 1, 11, "length") == {s: 5}
    for odd in (2 * s, s * other, s * s):
        with pytest.raises(CostError, match="length of 9"):
            _solved(odd, 9, "length")


class Fixed(nn.Module):
    """Takes eight tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 5)
        self.places = nn.Parameter(torch.zeros(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(x + self.places)
        return out


def test_a_length_lost_on_tracing() -> None:
    with pytest.warns(fxprune.errors.FxpruneWarning, match="fixed at 8"):
        traced = fxprune.trace(Fixed(), (torch.zeros(3, 8, 6),))
    graph = fxprune.discover(traced)
    assert macs(graph, length=8) == 8 * 6 * 5
    with pytest.raises(CostError, match="ask for length=8"):
        macs(graph, length=64)


def test_foreign_dims_change_nothing() -> None:
    graph = llama(3)
    assert macs(graph, {Dim(5): 2}) == macs(graph)
    assert macs(graph, Plan.of(graph, {}).kept_counts(graph)) == macs(graph)
