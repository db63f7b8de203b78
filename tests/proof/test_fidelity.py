"""Fidelity: the graph gives what the model gives, or it is said what differs."""

from __future__ import annotations

import copy
import functools
import importlib
import operator
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FxpruneWarning, TraceError
from fxprune.plan import Plan
from fxprune.proof.examples import checked
from fxprune.proof.fidelity import COMPARED, check_fidelity
from fxprune.trace import inputs
from tests.graphs import changed_output, edited

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Staged(nn.Module):
    """A tensor, stages by name, an index, nothing; it counts calls and writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 5)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        self.count += 1
        x.mul_(2)
        h = self.drop(self.up(x).relu())
        y = self.down(h)
        return y, {"c4": y.sigmoid(), "c5": [y * 1e-6, None]}, y.argmax(-1), y * self.count


class Noisy(nn.Module):
    """Draws random numbers; one more when it is not exported, if asked."""

    def __init__(self, *, more: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.more = nn.Linear(8, 16), nn.Linear(16, 5), more

    def forward(self, x: Tensor) -> Tensor:
        if self.more and not torch.compiler.is_exporting():
            torch.rand(1)
        y = self.down(self.up(x).relu())
        return y + torch.rand_like(y)


@functools.cache
def staged() -> fxprune.Traced:
    return fxprune.trace(Staged(), (X.clone(),))


def test_the_graph_is_the_model() -> None:
    x = X.clone()
    traced = replace(staged(), args=(x,))
    before = copy.deepcopy(traced.module.state_dict())
    traced.module.train()
    assert check_fidelity(traced) == COMPARED
    assert check_fidelity(traced, (X[:2].clone(),)) == COMPARED
    assert torch.equal(x, X), "an input is changed"
    assert traced.module.training
    assert traced.module.drop.training
    for name, value in traced.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert traced.module.count is traced.tensors["count"]


@pytest.mark.parametrize(
    ("place", "change", "path"),
    [
        (0, lambda y: y * 1.01, r"`\[0\]` differs by up to .* of values up to"),
        (1, lambda y: y + 0.01, r"`\[1\]\['c4'\]` differs by up to 1.00e-02"),
        (2, torch.zeros_like, r"`\[1\]\['c5'\]\[0\]` differs by up to .*e-06 of values up to"),
        (3, lambda y: y, r"`\[1\]\['c5'\]\[1\]`"),
        (4, lambda y: (y + 1) % 5, r"`\[2\]` differs at 4 of 4 places"),
        (0, lambda y: y.masked_fill(y == y.max(), torch.nan), r"`\[0\]` is not finite"),
        (0, lambda y: y.masked_fill(y == y.max(), torch.inf), r"`\[0\]` is not finite"),
        (0, lambda y: y.double(), r"`\[0\]` is of torch.float64, not of torch.float32"),
        (0, lambda y: y[:1], r"`\[0\]` has shape \(1, 5\), not \(4, 5\)"),
        (0, lambda y: y @ y, "does not run on inputs that the model takes"),
    ],
)
def test_a_wrong_graph_is_named(place: int, change: Callable[[Tensor], Tensor], path: str) -> None:
    if place == 3:
        wrong = edited(staged(), changed_output(3, lambda y: torch.zeros(())))
    else:
        wrong = edited(staged(), changed_output(place, change))
    with pytest.raises(TraceError, match=path):
        check_fidelity(wrong)
    plan = Plan.of(fxprune.discover(staged()), {})
    with pytest.raises(TraceError, match=path):
        fxprune.verify(wrong, wrong.graph_module, plan)


def test_a_wrong_state_is_named() -> None:
    def twice(graph: fx.Graph) -> None:
        (copied,) = graph.find_nodes(op="call_function", target=torch.ops.aten.add_.Tensor)
        copied.update_arg(1, 2)

    with pytest.raises(TraceError, match="`the buffer count` differs"):
        check_fidelity(edited(edited(staged(), twice), changed_output(5, lambda y: y / 2)))


def test_a_constant_that_drifts_is_named() -> None:
    traced = replace(staged(), graph_module=copy.copy(staged().graph_module))
    traced.graph_module.register_buffer("literal", torch.ones(3))

    def drift(graph: fx.Graph) -> None:
        end = graph.output_node()
        with graph.inserting_before(end):
            literal = graph.get_attr("literal")
            graph.call_function(torch.ops.aten.add_.Tensor, (literal, 1.0))

    with pytest.raises(TraceError, match="writes into its constant literal"):
        check_fidelity(edited(traced, drift))


def test_random_numbers_are_drawn_alike() -> None:
    traced = fxprune.trace(Noisy(), (X,))
    state = torch.random.get_rng_state()
    assert check_fidelity(traced) == COMPARED
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's numbers are left alone"
    graph = fxprune.discover(traced)
    (hidden,) = (g for g in graph.groups if g.kind == "mlp")
    plan = Plan.of(graph, {hidden.name: range(3, 16)})
    report = fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)
    assert report.relative_error < 1e-6


def test_random_numbers_in_another_order_are_told_apart() -> None:
    traced = fxprune.trace(Noisy(more=True), (X,))
    with pytest.raises(TraceError, match="draws random numbers"):
        check_fidelity(traced)


def test_on_meta_it_is_said_that_nothing_ran() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        traced = fxprune.trace(model, (torch.empty(4, 8),))
    assert "meta" in check_fidelity(traced)


def test_the_whole_model_is_compared_where_blocks_went() -> None:
    wrong = edited(staged(), changed_output(0, operator.neg))
    shorter = replace(staged(), original=wrong)
    with pytest.raises(TraceError, match=r"`\[0\]`"):
        check_fidelity(shorter)


# two sizes


def test_another_size_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "at_other_size", lambda traced: ((X[:3].clone(),), {}))
    assert len(checked(staged()).each) == 2
    assert len(checked(staged(), X[:2].clone()).each) == 1
    wrong = edited(staged(), changed_output(0, lambda y: y if len(y) == 4 else y * 1.5))
    assert check_fidelity(wrong) == COMPARED
    with pytest.raises(TraceError, match=r"seen at another size .*\(args\[0\] 3 x 8\)"):
        checked(wrong)


def test_a_size_that_the_model_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "at_other_size", lambda traced: ((X[:, :3].clone(),), {}))
    assert [each.what for each in checked(staged()).each] == [""]
    with pytest.raises(TraceError, match="Staged does not run on these inputs"):
        checked(staged(), X[:, :3].clone())


def test_prune_compares_before_it_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("fxprune.prune")
    wrong = edited(staged(), changed_output(0, operator.neg))
    monkeypatch.setattr(module, "trace", lambda *given: wrong)
    monkeypatch.setattr(module, "discover", lambda traced: pytest.fail("too late"))
    with pytest.raises(TraceError, match="does not compute what the model does"):
        fxprune.prune(wrong.module, wrong.args, pruning_ratio=0.1, criterion=fxprune.Magnitude())


class Padded(nn.Module):
    """Averages over padded places too."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=padding).mean(1)


def test_what_fused_encoder_layers_make_different_is_said() -> None:
    inputs = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype, torch says
        traced = fxprune.trace(Padded(True).eval(), inputs)
        warnings.simplefilter("error", FxpruneWarning)
        with pytest.raises(FxpruneWarning, match=r"fused layers .* output `output` otherwise"):
            check_fidelity(traced)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            check_fidelity(traced)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    check_fidelity(fxprune.trace(Padded(False).eval(), inputs))
