"""The matrices of experts are refitted one by one, each to what it gave to the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune.errors import CalibrationError
from fxprune.plan import Plan
from tests.compensate.by_hand import relative, ridge
from tests.importance.test_experts import IDS, llama4, mixtral
from tests.importance.test_stacked import LABELS, ROWS, Mixture, batched, qwen3

HALF = tuple(range(1, 16, 2))
DAMPING = 0.5
Rows = dict[tuple[int, int], tuple[Tensor, Tensor]]


class Loop:
    """Of one mixture, by expert and token: what the down projection is given and gives."""

    def __init__(self, module: Any) -> None:
        self.rows: Rows = {}
        self.handle = module.register_forward_hook(self.see)

    def see(self, module: Any, args: tuple[Tensor, ...], _: Any) -> None:
        x, index = (*args, None)[:2]
        if index is None:
            chosen = [torch.where(each.abs().sum(1) > 0)[0] for each in x.view(5, -1, x.shape[-1])]
        else:
            chosen = [
                torch.where((index == expert).any(1))[0] for expert in range(len(module.down_proj))
            ]
        for expert, tokens in enumerate(chosen):
            if index is None:
                mine = x.view(5, -1, x.shape[-1])[expert][tokens]
                into, down = module.gate_up_proj[expert].T, module.down_proj[expert].T
            else:
                mine, into, down = x[tokens], module.gate_up_proj[expert], module.down_proj[expert]
            gate, up = (mine @ into.T).chunk(2, -1)
            hidden = module.act_fn(gate) * up
            for token, h in zip(tokens.tolist(), hidden, strict=True):
                self.rows[expert, token] = (h.double(), (h @ down.T).double())


def mixture(model: Any, layer: int) -> Any:
    found = model.model.layers[layer]
    return (found.mlp if hasattr(found, "mlp") else found.feed_forward).experts


def matrix(model: Any, tensor: Tensor, expert: int) -> Tensor:
    weight = tensor[expert].detach().double()
    return weight.T if "Llama4" in type(model).__name__ else weight


def watched(model: Any, layer: int, ids: Tensor = IDS) -> Rows:
    loop = Loop(mixture(model, layer))
    with torch.no_grad():
        model(input_ids=ids)
    loop.handle.remove()
    return loop.rows


def halved(model: Any, layers: tuple[int, ...] = (0, 1), **options: Any) -> Any:
    """The original graph, the plan, and the smaller graph with and without compensation."""
    kwargs = {name: torch.ones_like(IDS) for name in options.pop("with_mask", ())}
    traced = fxprune.trace(model, kwargs={"input_ids": IDS, **kwargs})
    graph = fxprune.discover(traced)
    names = [
        f"model.layers.{i}.{p}:units"
        for i in layers
        for p in ("mlp.experts", "feed_forward.experts")
    ]
    plan = Plan.of(graph, {g.name: HALF for g in graph.groups if g.name in names})
    plain, small = (fxprune.rewrite(traced, plan) for _ in "ab")
    data = options.pop("data", IDS)
    settings = {"damping": DAMPING, "temperature": False, "scope": "pruned", **options}
    report = fxprune.compensate(traced, small, plan, data, **settings)
    return traced, plan, plain, small, report


def weight_of(module: Any, model: Any, layer: int, name: str = "down_proj") -> Tensor:
    path = "feed_forward" if "Llama4" in type(model).__name__ else "mlp"
    found: Tensor = module.get_parameter(f"model.layers.{layer}.{path}.experts.{name}")
    return found.detach()


def expected(
    dense: Rows, given: Rows, before: Tensor, expert: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The refitted matrix of an expert, with the inputs and targets that it is fitted to."""
    tokens = sorted(t for e, t in dense if e == expert and (e, t) in given)
    if len(tokens) < 2 * before.shape[1]:
        return before, before.new_zeros(0, before.shape[1]), before.new_zeros(0, before.shape[0])
    x = torch.stack([given[expert, t][0] for t in tokens])
    y = torch.stack([dense[expert, t][1] for t in tokens])
    change, _ = ridge(x, y - x @ before.T, DAMPING, fit_bias=False)
    return before + change, x, y


@pytest.mark.parametrize("make", [mixtral, batched, qwen3, llama4])
def test_one_layer_by_least_squares(make: Any) -> None:
    model = make()
    _, _, plain, small, report = halved(model, layers=(1,))
    dense = watched(model, 1)
    given = {key: (x[list(HALF)], y) for key, (x, y) in dense.items()}
    for expert in range(5):
        before = matrix(model, weight_of(plain, model, 1), expert)
        after = matrix(model, weight_of(small, model, 1), expert)
        new, x, y = expected(dense, given, before, expert)
        torch.testing.assert_close(after, new, rtol=1e-3, atol=1e-4)
        if len(x):
            assert relative(y - x @ after.T, y) < relative(y - x @ before.T, y)
    (line,) = report.consumers
    assert line.skipped is None
    assert 0 < line.after < line.before


@pytest.mark.parametrize("make", [mixtral, batched])
def test_tokens_that_go_elsewhere_in_the_pruned_model_do_not_count(make: Any) -> None:
    model = make()
    traced, plan, plain, small, _ = halved(model)
    stock = fxprune.shrink(model, plan, traced=traced)
    with torch.no_grad():
        mixture(stock, 0).down_proj.copy_(weight_of(small, model, 0))
    dense, given = watched(model, 1), watched(stock, 1)
    both = dense.keys() & given.keys()
    assert 0.3 * len(dense) < len(both) < len(dense)  # the routes differ
    for expert in range(5):
        before = matrix(model, weight_of(plain, model, 1), expert)
        new, _, _ = expected(dense, given, before, expert)
        after = matrix(model, weight_of(small, model, 1), expert)
        torch.testing.assert_close(after, new, rtol=1e-3, atol=1e-4)


def test_batched_experts_give_the_same() -> None:
    pairs = [halved(make(), scope="all")[3] for make in (mixtral, batched)]
    for (name, one), other in zip(pairs[0].named_parameters(), pairs[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("make", [mixtral, llama4])
def test_masked_tokens_do_not_count(make: Any) -> None:
    padded = torch.cat([IDS, IDS.new_full((len(IDS), 4), 7)], 1)
    mask = torch.ones_like(padded)
    mask[:, -4:] = 0
    data = {"input_ids": padded, "attention_mask": mask}
    results = [halved(make(), with_mask=("attention_mask",), data=each)[3] for each in (IDS, data)]
    for (name, one), other in zip(
        results[0].named_parameters(), results[1].parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("make", [mixtral, batched])
def test_after_experts_went_those_that_stay_are_refitted(make: Any) -> None:
    model = make()
    traced = fxprune.trace(model, kwargs={"input_ids": IDS})
    graph = fxprune.discover(traced)
    kept = {"model.layers.0.mlp.experts:units": HALF, "model.layers.0.mlp:experts": (0, 2, 4)}
    plan = Plan.of(graph, kept)
    plain, small = (fxprune.rewrite(traced, plan) for _ in "ab")
    options: dict[str, Any] = {"temperature": False, "scope": "pruned"}
    fxprune.compensate(traced, small, plan, IDS, **options)
    dense = watched(model, 0)
    given = watched(fxprune.shrink(model, plan, traced=traced), 0)
    numbered = {
        (number, t): dense[e, t]
        for number, e in enumerate((0, 2, 4))
        for t in range(IDS.numel())
        if (e, t) in dense
    }
    for expert in range(3):
        before = weight_of(plain, model, 0)[expert].double()
        new, x, _ = expected(numbered, given, before, expert)
        assert len(x)
        torch.testing.assert_close(
            weight_of(small, model, 0)[expert].double(), new, rtol=1e-3, atol=1e-4
        )


def test_an_expert_with_few_tokens_is_left_alone() -> None:
    model = mixtral()
    ids = IDS[:3, :14]
    met = [expert for expert, _ in watched(model, 1, ids)]
    rare = {expert for expert in range(5) if met.count(expert) < 16}
    assert 0 < len(rare) < 5
    _, _, plain, small, report = halved(model, layers=(1,), data=ids)
    for expert in range(5):
        same = weight_of(small, model, 1)[expert].equal(weight_of(plain, model, 1)[expert])
        assert same == (expert in rare)
    assert report.consumers[0].rare == len(rare)
    assert f"{len(rare)} matrices of experts with too few tokens kept" in str(report)


def test_a_loop_over_experts_is_the_same() -> None:
    found = []
    for loop in (False, True):
        traced = fxprune.trace(Mixture(loop), (ROWS,))
        graph = fxprune.discover(traced)
        plan = Plan.of(graph, {g.name: (1, 2, 5, 6) for g in graph.groups if g.kind == "mlp"})
        small = fxprune.rewrite(traced, plan)
        report = fxprune.compensate(
            traced, small, plan, [(ROWS, LABELS)], batch_size=50, temperature=False
        )
        assert not report.skipped
        assert ("down[3]" in {line.name for line in report.consumers}) == loop
        found.append(dict(small.named_parameters()))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_what_is_not_done_is_said() -> None:
    model = mixtral()
    with pytest.raises(CalibrationError, match="cannot be used where tokens are sent to experts"):
        halved(model, target="propagated")
    report = halved(model, method="bias", target="dense")[4]
    assert all("no bias" in line.skipped for line in report.consumers)
