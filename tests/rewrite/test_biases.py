"""A bias that the plan adds is a parameter of zeros on the Linear that had none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneError, RewriteError
from fxprune.hf.folder import checkpoint
from fxprune.plan import Plan
from tests.llama import tiny_llama
from tests.zoo import BY_NAME

IDS = torch.arange(44).view(4, 11) % 90
NAMES = ("model.layers.0.mlp.down_proj.bias", "model.layers.1.self_attn.o_proj.bias")


def planned(traced: fxprune.Traced, *names: str) -> Plan:
    graph = fxprune.discover(traced)
    kept = {g.name: tuple(range(1, g.size)) for g in graph.groups if g.kind in ("mlp", "channel")}
    return Plan.of(graph, kept, biases=names)


def test_it_is_there_and_the_oracle_holds() -> None:
    model = tiny_llama()
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(False)
    traced = fxprune.trace(model)
    plan = planned(traced, *NAMES)
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan, {"input_ids": IDS})
    for name, trains in zip(NAMES, (False, True), strict=True):
        bias = small.get_parameter(name)
        assert bias.tolist() == [0.0] * 35  # one channel went
        assert bias.requires_grad is trains
        assert bias.dtype == torch.float32
    assert small.get_submodule("model.layers.1.mlp.down_proj").bias is None
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
    assert model.model.layers[0].mlp.down_proj.bias is None


def test_it_is_added() -> None:
    traced = fxprune.trace(tiny_llama())
    small = fxprune.rewrite(traced, planned(traced, *NAMES))
    with torch.no_grad():
        before = small(input_ids=IDS).logits
        small.get_parameter(NAMES[0]).fill_(1.0)
        assert not torch.allclose(small(input_ids=IDS).logits, before)


def test_a_checkpoint_holds_it(tmp_path: Path) -> None:
    traced = fxprune.trace(tiny_llama())
    plan = planned(traced, *NAMES)
    small = fxprune.rewrite(traced, plan)
    with torch.no_grad():
        small.get_parameter(NAMES[0]).copy_(torch.randn(35))
        expected = small(input_ids=IDS).logits
    loaded = checkpoint.load(checkpoint.save(small, tmp_path / "small", plan=plan, traced=traced))
    assert torch.equal(loaded.get_parameter(NAMES[0]), small.get_parameter(NAMES[0]))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS).logits, expected)


def test_a_subclass_that_adds_its_bias_may_gain_one() -> None:
    """Falcon's Linear has a forward of its own."""
    entry = BY_NAME["falcon_grouped"]
    traced = fxprune.trace(entry.build(), *entry.example())
    plan = planned(traced, name := "transformer.h.0.mlp.dense_4h_to_h.bias")
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    assert len(small.get_parameter(name)) == 47
    before = small(**entry.example()[1]).logits
    small.get_parameter(name).data.fill_(1.0)
    assert not torch.allclose(small(**entry.example()[1]).logits, before)


class Twice(nn.Module):
    """A Linear that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 10)
        self.same = nn.Linear(10, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.same(torch.relu(self.same(self.enter(x))))


def test_a_shared_linear_gains_one_bias() -> None:
    model = Twice()
    traced = fxprune.trace(model, (x := torch.randn(4, 6),))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {}, biases=("same.bias",))
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    small.get_parameter("same.bias").data.normal_()
    weight, bias = model.same.weight, small.get_parameter("same.bias")
    inner = torch.relu(F.linear(model.enter(x), weight, bias))
    torch.testing.assert_close(small(x), F.linear(inner, weight, bias))
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after


class Stubborn(nn.Linear):
    """A Linear that takes no notice of a bias."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.stubborn = Stubborn(8, 5, bias=False)
        self.table = nn.Embedding(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.stubborn(torch.relu(self.first(x))) @ self.table.weight.T


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first.bias", "first"),
        ("stubborn.bias", "does not add a bias"),
        ("table.bias", "Embedding"),
        ("nowhere.bias", "nowhere"),
    ],
)
def test_what_cannot_gain_one(name: str, message: str) -> None:
    model = Odd()
    traced = fxprune.trace(model, (torch.randn(4, 6),))
    graph = fxprune.discover(traced)
    before = model.state_dict()
    with pytest.raises(FxpruneError, match=message):
        fxprune.rewrite(traced, Plan.of(graph, {}, biases=(name,)), consume=True)
    assert all(t.numel() for t in before.values())


def test_a_linear_that_does_not_come_back() -> None:
    """Its weight is read outside of its forward, so no module call is left."""

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner.weight.T

    traced = fxprune.trace(Outside(), (torch.randn(4, 6),))
    plan = Plan.of(fxprune.discover(traced), {}, biases=("inner.bias",))
    with pytest.raises(RewriteError, match="did not come back"):
        fxprune.rewrite(traced, plan)
