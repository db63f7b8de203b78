"""What the oracle must not be fooled by: references, outputs, precisions and sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import OracleError
from fxprune.plan import Plan
from fxprune.proof import oracle
from fxprune.trace import inputs
from tests.graphs import changed_output, copied
from tests.llama import tiny_llama

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """A hidden layer of 16 units that can be pruned, and what becomes of two heads that read it."""

    def __init__(self, outputs: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 5), nn.Linear(16, 4)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        h = self.up(x).tanh()
        return self.outputs(self.a(h), self.b(h))


Pruned = tuple[fxprune.Traced, fx.GraphModule, Plan]


def pruned(
    outputs: Callable[[Tensor, Tensor], Any], dtype: torch.dtype = torch.float32, x: Tensor = X
) -> Pruned:
    traced = fxprune.trace(Heads(outputs).to(dtype), (x.to(dtype),))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {group.name: range(2, group.size) for group in graph.groups})
    assert plan.kept
    return traced, fxprune.rewrite(traced, plan), plan


def damaged(small: fx.GraphModule, place: int, change: Callable[[Tensor], Any]) -> fx.GraphModule:
    """The smaller model with one of its outputs changed."""
    graph = copied(small.graph)
    changed_output(place, change)(graph)
    module = fx.GraphModule(small, graph)
    module.graph.set_codegen(small.graph._codegen)
    module.recompile()
    return module


# references that prove nothing


def test_nan_is_refused_with_the_op_where_it_began() -> None:
    traced, small, plan = pruned(lambda a, b: (b, a.log()))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(17)
    with pytest.raises(OracleError) as raised:
        fxprune.verify(traced, small, plan)
    text = str(raised.value)
    assert "NaN in output `[1]`" in text
    assert "began at aten.log.default" in text
    assert "test_proof.py:" in text
    assert "fxprune.verify(traced, small, plan, inputs)" in text
    assert "args=" in text


def test_other_inputs_prove_what_these_cannot() -> None:
    traced, small, plan = pruned(lambda a, b: (b, (a + 0.9).log()))
    finite = X[(traced.module.a(traced.module.up(X).tanh()) > -0.5).all(-1)][:1] * 0
    report = fxprune.verify(traced, small, plan, finite.expand(4, -1).contiguous())
    assert report.relative_error < 1e-4


def test_nan_of_infinities_names_where_these_began() -> None:
    traced, small, plan = pruned(lambda a, b: ((a * 1e4).exp() - (b * 1e4).exp().sum(),))
    with pytest.raises(OracleError, match=r"began at aten.sub.Tensor.* infinity from aten.exp"):
        fxprune.verify(traced, small, plan)


def test_a_single_nan_is_enough() -> None:
    traced, small, plan = pruned(lambda a, b: (a.masked_fill(a == a.max(), torch.nan), b))
    with pytest.raises(OracleError, match="NaN in output `\\[0\\]`"):
        fxprune.verify(traced, small, plan)


def test_nan_in_the_weights_and_in_the_inputs() -> None:
    traced, small, plan = pruned(lambda a, b: a)
    with torch.no_grad():
        traced.module.a.bias[1] = torch.nan
    with pytest.raises(OracleError, match=r"began at the tensor a\.bias"):
        fxprune.verify(traced, small, plan)
    with torch.no_grad():
        traced.module.a.bias[1] = 0
    with pytest.raises(OracleError, match="began at the input x"):
        fxprune.verify(traced, small, plan, X.where(X < 1, torch.nan))


def test_nan_at_the_other_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, small, plan = pruned(lambda a, b: a)
    monkeypatch.setattr(inputs, "at_other_size", lambda traced: ((X[:4] * torch.nan,), {}))
    with pytest.raises(OracleError, match=r"NaN in output `output` at another size .*4 x 8"):
        fxprune.verify(traced, small, plan)
    assert fxprune.verify(traced, small, plan, X).tensors


def test_nothing_finite_proves_nothing() -> None:
    traced, small, plan = pruned(lambda a, b: (a.abs() + 1) / 0)
    with pytest.raises(OracleError, match=r"no finite number in output .* began at aten.div"):
        fxprune.verify(traced, small, plan)


def test_infinities_may_be_meant() -> None:
    """Masked scores: minus infinity at the same places, and the rest compared."""
    mask = torch.tensor([True, False, True, False, False])
    traced, small, plan = pruned(lambda a, b: a.masked_fill(mask, -torch.inf))
    assert fxprune.verify(traced, small, plan).relative_error < 1e-5
    for change in (
        torch.neg,
        lambda y: y.nan_to_num(),
        lambda y: y.roll(1, -1),
        lambda y: y * 1.01,
        lambda y: y.where(y != y.max(), torch.inf),
    ):
        with pytest.raises(OracleError, match="must not be used"):
            fxprune.verify(traced, damaged(small, 0, change), plan)


# outputs


def test_each_output_has_its_own_scale() -> None:
    traced, small, plan = pruned(lambda a, b: {"small": a * 1e-6, "large": b * 1e6})
    report = fxprune.verify(traced, small, plan)
    assert {output.path for output in report.outputs} == {"small", "large"}
    scales = {output.path: output.scale for output in report.outputs}
    assert scales["small"] < 1e-5
    assert scales["large"] > 1e5
    for place, path in enumerate(("small", "large")):
        for change in (torch.zeros_like, lambda y: y * 1.001):
            with pytest.raises(OracleError, match=f"output `{path}`"):
                fxprune.verify(traced, damaged(small, place, change), plan)


def test_each_output_has_the_tolerance_of_its_own_dtype() -> None:
    traced, small, plan = pruned(lambda a, b: (a, b.bfloat16()))
    report = fxprune.verify(traced, small, plan)
    tolerances = {output.path: output.tolerance for output in report.outputs}
    assert tolerances["[0]"] == 1e-4
    assert tolerances["[1]"] == 5e-2
    with pytest.raises(OracleError, match=r"`\[0\]`"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * 1.02), plan)


def test_integers_are_exact() -> None:
    traced, small, plan = pruned(lambda a, b: (a, b.argmax(-1) + 1000, b > 0))
    fxprune.verify(traced, small, plan)
    for place, change in ((1, lambda y: y + 1), (2, torch.logical_not), (1, torch.Tensor.float)):
        with pytest.raises(OracleError, match=rf"`\[{place}\]`"):
            fxprune.verify(traced, damaged(small, place, change), plan)


def test_complex_outputs() -> None:
    traced, small, plan = pruned(lambda a, b: torch.complex(a, a.flip(0)))
    assert fxprune.verify(traced, small, plan).relative_error < 1e-5
    for change in (torch.conj_physical, lambda y: y * 1.001, torch.zeros_like):
        with pytest.raises(OracleError, match="differs"):
            fxprune.verify(traced, damaged(small, 0, change), plan)


def test_outputs_of_zeros_are_compared() -> None:
    traced, small, plan = pruned(lambda a, b: (a.clamp(max=-9) + 9, b))
    assert not fxprune.verify(traced, small, plan).outputs[0].scale
    with pytest.raises(OracleError, match=r"`\[0\]`"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y + 1e-3), plan)


def test_outputs_are_counted() -> None:
    traced, small, plan = pruned(lambda a, b: (a, b))
    fewer = fx.GraphModule(small, copied(small.graph))
    (outputs,) = fewer.graph.output_node().args
    fewer.graph.output_node().args = (outputs[:1],)
    fewer.graph.set_codegen(fx.graph.CodeGen())
    fewer.recompile()
    with pytest.raises(OracleError, match="1 outputs, the original 2"):
        fxprune.verify(traced, fewer, plan)


def test_a_small_channel_beside_large_ones() -> None:
    """Far below what float32 tells apart: the numbers are computed in float64 then."""
    traced, small, plan = pruned(lambda a, b: torch.cat((a * 1e-7, b), -1))
    report = fxprune.verify(traced, small, plan)
    assert "float64" in report.precision
    assert report.outputs[-1].dtype == torch.float64
    wrong = torch.ones(9).index_fill(0, torch.tensor([1]), 1.01)
    with pytest.raises(OracleError, match="differs"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * wrong), plan)


def test_a_small_channel_of_a_model_in_half_precision() -> None:
    traced, small, plan = pruned(lambda a, b: torch.cat((a * 1e-7, b), -1), torch.bfloat16)
    report = fxprune.verify(traced, small, plan)
    assert "float64" in report.precision
    wrong = torch.ones(9).index_fill(0, torch.tensor([1]), 1.01)
    with pytest.raises(OracleError, match="differs"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * wrong.to(y)), plan)


def test_what_does_not_run_is_refused() -> None:
    traced, small, plan = pruned(lambda a, b: a)
    with pytest.raises(OracleError, match="the smaller model does not run"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y @ y), plan)


# half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proven_in_float32(dtype: torch.dtype) -> None:
    traced, small, plan = pruned(lambda a, b: (a, b.float() * 1.5), dtype)
    report = fxprune.verify(traced, small, plan)
    assert report.precision.startswith("float32")
    assert report.tensors == 6
    assert report.tolerance == 1e-4
    assert report.relative_error < 1e-5
    with pytest.raises(OracleError, match="differs"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * 1.001), plan)
    with pytest.raises(OracleError, match=r"torch\.float32 of shape"):
        fxprune.verify(traced, damaged(small, 0, torch.Tensor.float), plan)


def test_dead_units_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three kept units of little weight: the numbers see them, and so do the bits."""
    model = tiny_llama().to(torch.bfloat16)
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {g.name: range(3, g.size) for g in graph.groups if g.kind == "mlp"})
    small = fxprune.rewrite(traced, plan)
    assert fxprune.verify(traced, small, plan).relative_error < 1e-5
    with torch.no_grad():
        small.get_parameter("model.layers.1.mlp.down_proj.weight")[:, [1, 5, 9]] *= 0.5
    with pytest.raises(OracleError, match="output `logits` differs"):
        fxprune.verify(traced, small, plan)


def test_the_model_computes_as_it_does_where_it_must() -> None:
    """Bits read as integers mean nothing in another dtype."""

    def outputs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, (b.view(torch.int16) // 2**14).bfloat16()

    traced, small, plan = pruned(outputs, torch.bfloat16)
    report = fxprune.verify(traced, small, plan)
    assert "the dtype of the model" in report.precision
    assert report.outputs[0].dtype == torch.bfloat16
    with pytest.raises(OracleError, match=r"`\[0\]`"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * 1.2), plan)


# tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bit_of_a_kept_unit_is_seen(dtype: torch.dtype) -> None:
    traced, small, plan = pruned(lambda a, b: (a, b), dtype)
    bias = small.get_parameter("up.bias")
    bits = bias.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits[3] ^= 1
    with pytest.raises(OracleError, match=r"up\.bias .* 1 of 14 values"):
        fxprune.verify(traced, small, plan)
    bits[3] ^= 1
    fxprune.verify(traced, small, plan)


def test_an_added_bias_is_zero() -> None:
    traced = fxprune.trace(tiny_llama())
    graph = fxprune.discover(traced)
    kept = {g.name: range(3, g.size) for g in graph.groups if g.kind == "mlp"}
    bias = "model.layers.0.mlp.down_proj.bias"
    plan = Plan.of(graph, kept, biases=[bias])
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    with torch.no_grad():
        small.get_parameter(bias)[0] = 1e-30
    with pytest.raises(OracleError, match="not zero"):
        fxprune.verify(traced, small, plan)


def test_consumed_originals_are_compared_by_numbers() -> None:
    traced = fxprune.trace(Heads(lambda a, b: (a, b)), (X,))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {group.name: range(2, group.size) for group in graph.groups})
    expected = oracle.reference(traced, plan)
    small = fxprune.rewrite(traced, plan, consume=True)
    assert not oracle.compare(expected, small, traced).tensors
    with torch.no_grad():
        small.get_parameter("b.weight")[0, 0] += 0.01
    with pytest.raises(OracleError, match=r"`\[1\]`"):
        oracle.compare(expected, small, traced)


def test_a_converted_model_is_held_against_its_own_tolerance() -> None:
    def tokens() -> fxprune.Traced:
        torch.manual_seed(0)
        layers = (nn.Embedding(97, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        return fxprune.trace(nn.Sequential(*layers), (torch.arange(12).view(3, 4),))

    traced = tokens()
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {g.name: range(3, g.size) for g in graph.groups if g.kind == "mlp"})
    small = fxprune.rewrite(tokens(), plan).bfloat16()
    report = fxprune.verify(traced, small, plan)
    assert report.tolerance == 5e-2
    assert not report.tensors
    with pytest.raises(OracleError, match="differs"):
        fxprune.verify(traced, damaged(small, 0, lambda y: y * 1.2), plan)


# sizes


def test_it_runs_at_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, small, plan = pruned(lambda a, b: a)
    monkeypatch.setattr(inputs, "at_other_size", lambda traced: ((X[:3].clone(),), {}))
    report = fxprune.verify(traced, small, plan)
    assert [output.path for output in report.outputs] == ["output", "output"]
    assert report.trace == "compared with the model"
    wrong = damaged(small, 0, lambda y: y if len(y) == 6 else y * 1.1)
    with pytest.raises(OracleError, match=r"at another size .*3 x 8"):
        fxprune.verify(traced, wrong, plan)
    assert len(fxprune.verify(traced, wrong, plan, X).outputs) == 1
    monkeypatch.setattr(inputs, "at_other_size", lambda traced: None)
    assert len(fxprune.verify(traced, small, plan).outputs) == 1


def test_nothing_is_changed_by_a_proof() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.down(self.up(x.mul_(2)).relu()) * self.count

    x = X.clone()
    traced = fxprune.trace(Counting(), (x,))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {group.name: range(2, group.size) for group in graph.groups})
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    assert torch.equal(x, X)
    assert traced.module.count == small.get_buffer("count") == 0
    assert functools.reduce(lambda a, b: a and b, (m.training for m in traced.module.modules()))
