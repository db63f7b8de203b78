"""Compensation equals a direct solve of each consumer, in order, on already pruned inputs."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.compensate import CompensationReport, compensate
from fxprune.compensate.refit import DAMPING as DAMPING_ALONE
from fxprune.compensate.refit import DAMPINGS
from fxprune.errors import CalibrationError, PlanError, RewriteError
from fxprune.plan import Plan
from tests.compensate.by_hand import io, relative, ridge
from tests.zoo import BY_NAME, disturb

IDS = torch.randint(3, 101, (24, 13), generator=torch.Generator().manual_seed(5))
DATA = {"input_ids": IDS}
DAMPING = 0.03


def trace(name: str, model: nn.Module) -> fxprune.Traced:
    args, kwargs = BY_NAME[name].example()
    return fxprune.trace(model, args, kwargs)


@functools.cache
def traced(name: str) -> fxprune.Traced:
    """Traced once: the original must never change."""
    return trace(name, BY_NAME[name].build())


class Case:
    """A model, a plan that keeps every second unit of some kinds, and the smaller model."""

    def __init__(
        self, name: str, *kinds: str, biases: tuple[str, ...] = (), model: nn.Module | None = None
    ) -> None:
        self.traced = traced(name) if model is None else trace(name, model)
        self.model = self.traced.module
        self.graph = fxprune.discover(self.traced)
        kept = {
            g.name: tuple(range(0, g.size, 2))
            for g in self.graph.groups
            if g.kind in kinds and g.size > 2
        }
        self.plan = Plan.of(self.graph, kept, biases=biases)
        self.small = fxprune.rewrite(self.traced, self.plan)

    def fresh(self) -> fx.GraphModule:
        """Another smaller model, which shares no parameter with the original."""
        small = fxprune.rewrite(self.traced, self.plan)
        for module in small.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    module.register_parameter(name, nn.Parameter(tensor.detach().clone()))
        return small

    def run(self, data: Any = DATA, **options: Any) -> CompensationReport:
        plain = {"damping": DAMPING, "batch_size": 7, "target": "dense", "scope": "pruned"}
        options = {**plain, "temperature": False, **options}
        return compensate(self.traced, self.small, self.plan, data, **options)

    def error(self, data: dict[str, Tensor] = DATA) -> float:
        """Of the outputs, against the dense model."""
        with torch.no_grad():
            dense, pruned = (
                getattr(o, "logits", o) for o in (self.model(**data), self.small(**data))
            )
        return relative(pruned - dense, dense)


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], before[n]) for n in now)


def sequentially(case: Case, report: CompensationReport, kept: nn.Module) -> None:
    """Redo it on ``kept``, a copy of the smaller model, and compare every weight and error."""
    names = [each.name for each in report.consumers if each.skipped is None]
    targets = io(case.model, names, DATA)
    for each in report.consumers:
        if each.skipped is not None:
            continue
        here, there = kept.get_submodule(each.name), case.small.get_submodule(each.name)
        x, y = io(kept, [each.name], DATA)[each.name]
        target = targets[each.name][1]
        if target.shape[1] != y.shape[1]:  # its outputs are pruned too
            target = target[:, kept_outputs(case, each.name)]
        weight, bias = ridge(x, target - y, DAMPING, here.bias is not None)
        transposed = type(here).__name__ == "Conv1D"
        with torch.no_grad():
            here.weight.add_(weight.T if transposed else weight)
            if here.bias is not None:
                here.bias.add_(bias)
        torch.testing.assert_close(there.weight, here.weight, atol=2e-4, rtol=2e-3)
        if here.bias is not None:
            torch.testing.assert_close(there.bias, here.bias, atol=2e-4, rtol=2e-3)
        after = io(kept, [each.name], DATA)[each.name][1]
        assert each.before == pytest.approx(relative(target - y, target), rel=1e-3)
        assert each.after == pytest.approx(relative(target - after, target), rel=1e-3)
        assert each.after < each.before or each.before == 0
        # So that rounding of one consumer does not pile up in the next.
        with torch.no_grad():
            here.weight.copy_(there.weight)
            if here.bias is not None:
                here.bias.copy_(there.bias)


def kept_outputs(case: Case, name: str) -> list[int]:
    """Outputs that stay, found by their weights: the smaller matrix is rows of the larger one."""
    large = case.model.get_submodule(name).weight
    small = fxprune.rewrite(case.traced, case.plan).get_submodule(name).weight
    axis = 1 if type(case.model.get_submodule(name)).__name__ == "Conv1D" else 0
    rows = {tuple(sorted(set(r.tolist()))): i for i, r in enumerate(large.unbind(axis))}
    found = []
    for row in small.unbind(axis):
        wanted = set(row.tolist())
        found.append(next(i for values, i in rows.items() if wanted <= set(values)))
    return found


CASES = {
    "grouped queries": ("llama", ("mlp", "attention"), 4),
    "several groups on one input": ("llama", ("mlp", "attention", "query", "head_dim"), 4),
    "channels": ("llama", ("channel",), 11),
    "channels and heads": ("llama", ("channel", "mlp", "attention"), 15),
    "Conv1D with a bias": ("gpt2", ("mlp", "attention"), 4),
    "Conv1D, channels and heads": ("gpt2", ("channel", "attention"), 6),
    "biases": ("opt", ("mlp", "attention"), 4),
    "no causality": ("bert", ("mlp", "attention"), 4),
    "transposed by the op": ("falcon_grouped", ("mlp", "attention"), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_direct_solve_consumer_by_consumer(name: str) -> None:
    model, kinds, count = CASES[name]
    case = Case(model, *kinds)
    kept, original, error = case.fresh(), values(case.model), case.error()
    report = case.run()
    assert len([c for c in report.consumers if c.skipped is None]) == count
    sequentially(case, report, kept)
    assert case.error() < error
    assert same(case.model, original)
    assert report.seconds > 0
    assert f"{count} consumers" in str(report)


def test_a_tied_head_is_left_alone() -> None:
    case = Case("gpt2", "channel")
    before = case.small.get_submodule("transformer.wte").weight.clone()
    report = case.run()
    (skipped,) = report.skipped
    assert skipped.name == "transformer.wte"
    assert "used in 2 places" in skipped.skipped
    assert skipped.before is skipped.after is None
    assert torch.equal(case.small.get_submodule("transformer.wte").weight, before)
    assert "1 skipped" in str(report)


@pytest.mark.parametrize("size", [1, 5, None])
def test_the_size_of_batches_does_not_matter(size: int | None) -> None:
    case = Case("opt", "mlp", "attention")
    other = Case("opt", "mlp", "attention")
    case.run(batch_size=size)
    other.run([IDS[:10], {"input_ids": IDS[10:], "labels": IDS[10:]}])
    for name, tensor in case.small.named_parameters():
        torch.testing.assert_close(tensor, other.small.get_parameter(name), atol=1e-4, rtol=1e-3)


def test_convolutions() -> None:
    """Against explicit patches, one per kernel position."""
    case = Case("resnet", "channel", "mlp")
    image = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    fresh, error = case.fresh(), case.error({"image": image})
    report = case.run(image)
    assert all(c.skipped is None and c.after < c.before for c in report.consumers)
    assert case.error({"image": image}) < error / 2
    # The first consumer: a 3 x 3 convolution that reads the pooled stem.
    name = report.consumers[0].name
    assert name == "plain.branch.0.0"
    sides: dict[str, list[Tensor]] = {}
    for key, module in (("dense", case.model), ("small", fresh)):
        layer = module.get_submodule(name)
        handle = layer.register_forward_hook(
            lambda _, args, y, key=key: sides.__setitem__(key, [args[0], y])
        )
        with torch.no_grad():
            module(image=image)
        handle.remove()
    x, y = sides["small"]
    padded = nn.functional.pad(x, (1, 1, 1, 1)).double()
    height, width = x.shape[2:]
    patches = torch.stack(
        [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)], 2
    )
    matrix = patches.flatten(1, 2).movedim(1, -1).flatten(0, -2)
    target = sides["dense"][1][:, ::2]
    lacking = (target - y).double().movedim(1, -1).flatten(0, -2)
    change, _ = ridge(matrix, lacking, DAMPING, False)
    expected = fresh.get_submodule(name).weight + change.view(-1, x.shape[1], 3, 3)
    actual = case.small.get_submodule(name).weight
    torch.testing.assert_close(actual, expected.float(), atol=1e-4, rtol=1e-3)


def gaining() -> tuple[str, ...]:
    ends = ("self_attn.o_proj.bias", "mlp.down_proj.bias")
    return tuple(f"model.layers.{i}.{end}" for i in range(2) for end in ends)


def test_a_gained_bias_is_fitted() -> None:
    case = Case("llama", "mlp", "attention", biases=gaining())
    kept = case.fresh()
    report = case.run()
    sequentially(case, report, kept)
    assert all(case.small.get_parameter(name).abs().min() > 0 for name in gaining())
    without = Case("llama", "mlp", "attention").run()
    assert report.consumers[0].after < without.consumers[0].after


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "falcon_grouped"])
def test_bias_is_flaps(name: str) -> None:
    biases = gaining() if name == "llama" else ()
    if name == "falcon_grouped":
        ends = ("self_attention.dense.bias", "mlp.dense_4h_to_h.bias")
        biases = tuple(f"transformer.h.{i}.{end}" for i in range(2) for end in ends)
    case = Case(name, "mlp", "attention", biases=biases)
    before, original = values(case.small), values(case.model)
    fresh = case.fresh()
    error = case.error()
    report = case.run(method="bias")
    assert case.error() < error
    names = [each.name for each in report.consumers]
    dense = io(case.model, names, DATA)
    changed = {n for n, t in case.small.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {f"{n}.bias" for n in names}
    for each in report.consumers:
        weight = case.model.get_submodule(each.name).weight.detach().double()
        weight = (
            weight.T if type(case.model.get_submodule(each.name)).__name__ == "Conv1D" else weight
        )
        x, y = dense[each.name]
        site = next(
            s
            for g in case.plan.kept
            for s in case.graph[g].sites
            if s.tensor == f"{each.name}.weight" and s.axis == (0 if name == "gpt2" else 1)
        )
        (group,) = [g for g in case.plan.kept if site in case.graph[g].sites]
        # Of every unit's equal share of the inputs, the kept ones' are taken out.
        removed = torch.ones(case.graph[group].size, weight.shape[1] // case.graph[group].size)
        removed[list(case.plan.kept[group])] = 0
        expected = weight @ (x.mean(0) * removed.flatten())
        gain = values(case.small)[f"{each.name}.bias"] - before[f"{each.name}.bias"]
        torch.testing.assert_close(gain.double(), expected, atol=1e-5, rtol=1e-4)
        here = io(fresh, [each.name], DATA)[each.name][1]
        assert each.before == pytest.approx(relative(y - here, y), rel=1e-3)
        assert each.after == pytest.approx(relative(y - here - gain, y), rel=1e-3)
        with torch.no_grad():
            fresh.get_parameter(f"{each.name}.bias").add_(gain)
    assert same(case.model, original)


def test_bias_needs_one() -> None:
    case = Case("llama", "mlp")
    with pytest.raises(PlanError, match=r"layers\.0\.mlp\.down_proj has no bias.*gain_bias=True"):
        case.run(method="bias")
    case = Case("resnet", "channel")
    report = case.run(torch.randn(4, 3, 16, 16), method="bias")
    assert "not an nn.Linear" in report.skipped[0].skipped
    assert [c.name for c in report.consumers if c.skipped is None] == ["hidden"]


def test_propagated_target() -> None:
    """Here the pruned model is the original with the removed inputs' columns at zero."""
    case = Case("llama", "mlp", "attention")
    case.run(target="propagated", scope=None)
    full = copy.deepcopy(case.model)
    for name in [n for n, _ in full.named_modules() if n.endswith(("o_proj", "down_proj"))]:
        layer = full.get_submodule(name)
        x, target = io(full, [name], DATA)[name]
        group = "mlp:units" if "mlp" in name else "self_attn:heads"
        kept = [g for g in case.plan.kept if g.startswith(name.rpartition(".")[0])]
        assert len(kept) == 1, (kept, group)
        units = case.graph[kept[0]].size
        share = torch.zeros(units, x.shape[1] // units, dtype=torch.bool)
        share[list(case.plan.kept[kept[0]])] = True
        columns = share.flatten().nonzero()[:, 0]
        weight = layer.weight.detach().double()
        lacking = target - x[:, columns] @ weight[:, columns].T
        change, _ = ridge(x[:, columns], lacking, DAMPING, False)
        mine = case.small.get_submodule(name).weight
        expected = weight[:, columns] + change
        torch.testing.assert_close(mine.double(), expected, atol=2e-4, rtol=2e-3)
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[:, columns] = mine


def test_propagated_target_refuses_what_it_cannot_do() -> None:
    with pytest.raises(CalibrationError, match=r"outputs of .*q_proj are pruned too"):
        Case("llama", "channel", "attention").run(target="propagated")
    with pytest.raises(CalibrationError, match=r"transformer\.wte is left alone"):
        Case("gpt2", "channel").run(target="propagated")


@functools.cache
def traced_with_a_mask(name: str) -> fxprune.Traced:
    model = BY_NAME[name].build()
    return fxprune.trace(model, (), {"input_ids": IDS[:4], "attention_mask": IDS[:4] * 0 + 1})


def masked(name: str = "opt") -> Case:
    case = Case(name, "mlp", "attention")
    case.traced = traced_with_a_mask(name)
    case.graph = fxprune.discover(case.traced)
    case.small = fxprune.rewrite(case.traced, case.plan)
    return case


@pytest.mark.parametrize("method", ["bias", "least-squares"])
def test_padding_does_not_count(method: Any) -> None:
    mask = torch.ones_like(IDS)
    mask[:, 9:] = 0
    results = []
    for padding in (0, 7):
        case = masked()
        ids = torch.where(mask == 1, IDS, padding)
        case.run({"input_ids": ids, "attention_mask": mask}, method=method)
        results.append(values(case.small))
    # Causal: the tokens before do not see the padding, so cutting it off is the same.
    case = masked()
    case.run({"input_ids": IDS[:, :9]}, method=method)  # the mask is made
    results.append(values(case.small))
    for name in results[0]:
        for other in results[1:]:
            torch.testing.assert_close(results[0][name], other[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_every_token_padded_is_an_error(name: str) -> None:
    case = masked(name)
    with pytest.raises(CalibrationError, match="hides every calibration token"):
        case.run({"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)})


def test_nothing_pruned_changes_nothing() -> None:
    case = Case("llama")
    before = values(case.small)
    assert case.run().consumers == ()
    assert same(case.small, before)


def test_inputs_that_lack_nothing_change_nothing() -> None:
    """The removed units are dead, so the kept ones give the whole output already."""
    model = BY_NAME["opt"].build()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.bias[1::2] = -1000
    case = Case("opt", "mlp", model=model)
    before = values(case.small)
    for each in case.run().consumers:
        assert each.before < 1e-6
        assert each.after < 1e-6
    for name, tensor in case.small.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_dead_inputs_keep_their_weights(damping: float) -> None:
    model = BY_NAME["opt"].build()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.bias[[0, 4]] = -1000  # kept units that no token turns on
    case = Case("opt", "mlp", model=model)
    before, error = values(case.small), case.error()
    report = case.run(damping=damping)
    for each in report.consumers:
        assert each.after < each.before
        weight, old = case.small.get_submodule(each.name).weight, before[f"{each.name}.weight"]
        assert torch.isfinite(weight).all()
        torch.testing.assert_close(weight[:, [0, 2]], old[:, [0, 2]])
    assert case.error() < error


def test_all_inputs_dead() -> None:
    model = BY_NAME["opt"].build()
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc1.bias[::2] = -1000
    case = Case("opt", "mlp", model=model)
    report = case.run()
    assert all(each.after < each.before for each in report.consumers)  # by the bias alone
    assert all(torch.isfinite(t).all() for t in case.small.parameters())


def test_damping_is_chosen_on_batches_held_out() -> None:
    """Every fourth; the best of what was tried on them, and then a fit to all by it."""
    case = Case("llama", "mlp")
    data = [{"input_ids": ids} for ids in IDS.split(3)]  # eight
    report = case.run(data, damping=None, batch_size=None)
    (first, *_) = report.consumers
    assert first.damping in DAMPINGS
    left = {}
    for damping in DAMPINGS:
        tried = Case("llama", "mlp")
        tried.run(data[:3] + data[4:7], damping=damping, batch_size=None)
        held = {"input_ids": torch.cat([IDS[9:12], IDS[21:24]])}
        _, y = io(tried.small, [first.name], held)[first.name]
        _, target = io(tried.model, [first.name], held)[first.name]
        left[damping] = float((target - y).square().sum())
    assert first.damping == min(left, key=left.__getitem__)
    same = Case("llama", "mlp")
    again = same.run(data, damping=first.damping, batch_size=None).consumers[0]
    assert again.after == pytest.approx(first.after, rel=1e-6)
    few = Case("llama", "mlp").run(damping=None, batch_size=None)
    assert few.consumers[0].damping == DAMPING_ALONE


@pytest.mark.parametrize("hidden", [(3, 7), (0, 1, 2, 4, 5, 6)])
def test_batches_held_out_that_are_hidden_do_not_count(hidden: tuple[int, ...]) -> None:
    case = masked()
    data = [
        {"input_ids": ids, "attention_mask": torch.full_like(ids, n not in hidden)}
        for n, ids in enumerate(IDS.split(3))
    ]
    report = case.run(data, damping=None, batch_size=None)
    assert {each.damping for each in report.consumers} == {DAMPING_ALONE}


def test_bfloat16_stays() -> None:
    model = BY_NAME["llama"].build().bfloat16()
    case = Case("llama", "mlp", "attention", model=model, biases=gaining())
    error = case.error()
    report = case.run()
    assert all(p.dtype == torch.bfloat16 for p in case.small.parameters())
    assert all(each.after < each.before for each in report.consumers)
    assert case.error() < error


def test_it_trains_and_keeps_its_mode_afterwards() -> None:
    case = Case("opt", "mlp")
    case.small.train()
    parameters = {n: p for n, p in case.small.named_parameters() if "fc2.bias" not in n}
    case.run()
    assert case.small.training
    assert all(case.small.get_parameter(n) is p for n, p in parameters.items())
    case.small(**DATA).logits.sum().backward()
    bias = case.small.get_parameter("model.decoder.layers.0.fc2.bias")
    assert bias.grad is not None
    assert bias is not case.model.get_parameter("model.decoder.layers.0.fc2.bias")


@pytest.mark.parametrize("method", ["bias", "least-squares"])
def test_values_that_are_not_finite_name_the_consumer_and_change_nothing(method: Any) -> None:
    model = BY_NAME["opt"].build()
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.weight[4, 4] = float("nan")
    case = Case("opt", "mlp", "attention", model=model)
    before, original = values(case.small), values(model)
    with pytest.raises(CalibrationError, match=r"layers\.1\.fc2: its inputs"):
        case.run(method=method)
    for name, tensor in case.small.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), original[name].nan_to_num())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"input_ids": IDS, "token_type_ids": IDS},
            "without the calibration input 'token_type_ids'",
        ),
        ({"input_ids": IDS, "attention_mask": IDS * 0}, "without the .* 'attention_mask'"),
        ({"inputs_embeds": IDS.double()}, "'inputs_embeds'"),
        ({"labels": IDS}, "lacks the input 'input_ids'"),
        ([], "empty"),
    ],
)
def test_data_that_does_not_fit(data: Any, message: str) -> None:
    case = Case("llama", "mlp")
    before = values(case.small)
    with pytest.raises(CalibrationError, match=message):
        case.run(data)
    assert same(case.small, before)


def test_a_mask_of_ones_is_left_out_where_the_graph_takes_none() -> None:
    case = Case("llama", "mlp")
    report = case.run({"input_ids": IDS, "attention_mask": torch.ones_like(IDS)})
    assert len(report.consumers) == 2


def test_an_image_of_another_size() -> None:
    case = Case("resnet", "channel")
    with pytest.raises(CalibrationError, match=r"'image' has shape \(4, 3, 8, 8\)"):
        case.run(torch.zeros(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method='magic': choose from auto, bias, least-squares, blockwise"),
        ({"target": "moon"}, "target='moon': choose from residual, dense, propagated"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"method": "bias", "target": "propagated"}, "dense model"),
        ({"scope": ""}, "scope='': choose from pruned, all"),
        ({"scope": "some"}, "scope='some': choose from pruned, all"),
        ({"method": "bias", "scope": "all"}, "use scope='pruned'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Case("perceptron", "mlp").run(**options)


def test_the_original_must_be_there() -> None:
    case = Case("llama", "mlp", model=BY_NAME["llama"].build())
    case.small = fxprune.rewrite(case.traced, case.plan, consume=True)
    with pytest.raises(CalibrationError, match="consume=True"):
        case.run()


def test_another_plans_model_is_refused() -> None:
    case = Case("llama", "mlp")
    case.small = Case("llama", "attention").small
    with pytest.raises(RewriteError, match=r"down_proj.weight' has shape \(36, 40\)"):
        case.run()


class Shared(nn.Module):
    """One Linear called twice, and one whose module does more than a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.twice = nn.Linear(10, 10, bias=False)
        self.scaled = Scaled(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.scaled(torch.relu(self.twice(torch.relu(self.twice(h)))))


class Scaled(nn.Module):
    """A leaf of its own kind, whose product does not read its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x * x) @ self.weight


def test_what_is_left_alone_says_why() -> None:
    model = Shared()
    disturb(model)
    traced = fxprune.trace(model, (torch.randn(5, 6),))
    graph = fxprune.discover(traced)
    (group,) = graph.groups
    plan = Plan.of(graph, {group.name: tuple(range(0, 10, 2))})
    small = fxprune.rewrite(traced, plan)
    before = values(small)
    report = compensate(traced, small, plan, torch.randn(50, 6))
    reasons = {each.name: each.skipped for each in report.consumers}
    assert "used in 2 places" in reasons["twice"]
    assert "more than a product" in reasons["scaled"]
    assert same(small, before)


def test_a_graph_without_leaves() -> None:
    """Weights that stay raw tensors of the graph are compensated as well."""

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(6, 12))
            self.b = nn.Parameter(torch.randn(12, 4))
            self.c = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.c, torch.relu(x @ self.a), self.b)

    torch.manual_seed(0)
    model = Raw()
    traced = fxprune.trace(model, (torch.randn(5, 6),))
    graph = fxprune.discover(traced)
    (group,) = graph.groups
    plan = Plan.of(graph, {group.name: tuple(range(0, 12, 2))})
    small: fx.GraphModule = fxprune.rewrite(traced, plan)
    assert any(n.op == "get_attr" and n.target == "b" for n in small.graph.nodes)
    data, bias = torch.randn(200, 6), model.c.detach().clone()
    compensate(traced, small, plan, data, damping=DAMPING, target="dense")
    with torch.no_grad():
        x = torch.relu(data @ model.a)[:, ::2].double()
        target = model(data).double()
        change, shift = ridge(x, target - x @ model.b[::2].double() - bias, DAMPING, True)
        torch.testing.assert_close(small.b.double(), model.b[::2] + change.T, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(small.c.double(), bias + shift, atol=1e-5, rtol=1e-4)
        expected = x @ small.b.double() + small.c
        torch.testing.assert_close(small(data).double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.c, bias)


def stream(block: int) -> dict[str, tuple[str, str]]:
    """Of a llama with two layers: which norms read the stream before and after an addition."""
    here = f"model.layers.{block}."
    next_norm = ("model.layers.1.input_layernorm", "model.norm")[block]
    first, second = f"{here}input_layernorm", f"{here}post_attention_layernorm"
    return {
        f"{here}self_attn.o_proj": (first, second),
        f"{here}mlp.down_proj": (second, next_norm),
    }


def test_residual_aims_at_the_stream_of_the_dense_model() -> None:
    case = Case("llama", "mlp", "attention")
    kept = case.fresh()
    report = case.run(target="residual")
    norms = stream(0) | stream(1)
    assert [each.name for each in report.consumers] == list(norms)
    for name, (before, after) in norms.items():
        mine, whole = (io(m, [before, after], DATA) for m in (kept, case.model))
        x, y = io(kept, [name], DATA)[name]
        target = whole[after][0] - mine[before][0]
        here, there = kept.get_submodule(name), case.small.get_submodule(name)
        change, _ = ridge(x, target - y, DAMPING, False)
        torch.testing.assert_close(
            there.weight, (here.weight + change).float(), atol=2e-4, rtol=2e-3
        )
        with torch.no_grad():
            here.weight.copy_(there.weight)


@pytest.mark.parametrize(
    ("name", "kinds", "count"),
    [
        ("llama", ("mlp", "attention"), 14),
        ("gpt2", ("mlp", "attention"), 8),
        ("opt", ("mlp", "channel"), 12),
    ],
)
def test_every_product_is_refitted(name: str, kinds: tuple[str, ...], count: int) -> None:
    """Those before a consumer too, on tensors of their own where the plan takes nothing of them."""
    case, alone = Case(name, *kinds), Case(name, *kinds)
    original, kept = values(case.model), case.fresh()
    alone.run()
    report = case.run(scope="all")
    assert len([each for each in report.consumers if each.skipped is None]) == count
    sequentially(case, report, kept)
    assert case.error() < alone.error()
    assert same(case.model, original)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "bert", "t5", "gemma2"])
def test_residual_brings_the_output_nearer(name: str) -> None:
    """With the stream alone, parallel branches, norms after the addition, two stacks."""
    case = Case(name, "mlp")
    data = dict(DATA)
    if name == "t5":
        data["decoder_input_ids"] = IDS.flip(1)
    before = case.error(data)
    report = case.run(data, target="residual")
    assert not report.skipped
    assert case.error(data) < before
