"""One forward pass for everything, each token seen once, whatever module applies the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

import fxprune
from fxprune.errors import CriterionError
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance import (
    FLAP,
    ActivationNorm,
    Magnitude,
    PeakToPeak,
    Random,
    Taylor,
    WandaSP,
    estimate,
)
from tests.llama import tiny_llama

IDS = torch.randint(0, 90, (5, 9), generator=torch.Generator().manual_seed(1))
KINDS = ("mlp", "attention")


class MLP(nn.Module):
    """One hidden layer of 6 units, under checkpointing if asked for."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)
        self.checkpointed = checkpointed
        self.runs = 0

    def inside(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.down(input=self.up(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            result: Tensor = checkpoint(self.inside, x, use_reentrant=False)
            return result
        return self.inside(x)


def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return model(batch["x"]).square().mean()


def discover(model: nn.Module, *args: Any, **kwargs: Any) -> DependencyGraph:
    return fxprune.discover(fxprune.trace(model, args, kwargs))


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_pre_hooks) + len(m._forward_pre_hooks_with_kwargs) for m in model.modules()
    )


def test_all_criteria_in_one_pass() -> None:
    model = tiny_llama()
    graph = discover(model, input_ids=IDS[:2])
    criteria = [
        Random(1),
        WandaSP(),
        Taylor(),
        Magnitude(),
        FLAP(),
        PeakToPeak(),
        Taylor(reduce="vector"),
        ActivationNorm(1),
    ]
    runs = []
    handle = model.register_forward_pre_hook(lambda module, args: runs.append(1))
    together = estimate(model, graph, criteria, IDS, kinds=KINDS)
    assert len(runs) == 1
    second = estimate(model, graph, [*criteria, Taylor(2)], IDS, kinds=KINDS)
    assert len(runs) == 1 + len(IDS)
    handle.remove()
    for i, criterion in enumerate(criteria):
        alone = estimate(model, graph, criterion, IDS, kinds=KINDS)
        assert together[i].criterion == second[i].criterion == alone.criterion == repr(criterion)
        for name, scores in alone.items():
            torch.testing.assert_close(together[i][name], scores)
            torch.testing.assert_close(second[i][name], scores, rtol=1e-4, atol=1e-5)
    assert estimate(model, graph, [], IDS) == []


def test_batches_without_labels_are_still_observed() -> None:
    model = tiny_llama()
    graph = discover(model, input_ids=IDS[:2])
    labels = IDS.clone()
    labels[2:] = -100
    data = {"input_ids": IDS, "labels": labels}
    both = [WandaSP(), Taylor()]
    wanda, taylor = estimate(model, graph, both, data, kinds=KINDS, batch_size=1)
    whole = estimate(model, graph, WandaSP(), IDS, kinds=KINDS)
    torch.testing.assert_close(dict(wanda), dict(whole))
    assert taylor.keys() == whole.keys()


@pytest.mark.parametrize("order", [1, 2])
def test_checkpointing_does_not_count_twice(order: Any) -> None:
    x = torch.randn(7, 4)
    plain, saving = MLP(), MLP(checkpointed=True)
    graph = discover(plain, torch.randn(2, 4))
    criteria = [WandaSP(), FLAP(), ActivationNorm(), Taylor(order)]
    expected = estimate(plain, graph, criteria, {"x": x}, loss_fn=loss)
    found = estimate(saving, graph, criteria, {"x": x}, loss_fn=loss)
    assert saving.runs == 2 * (1 if order == 1 else 7)  # the inside did run again
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(dict(a), dict(b))


def test_a_module_called_twice_is_seen_twice() -> None:
    class Twice(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x) + self.inside(2 * x)

    model, x = Twice(), torch.randn(7, 4)
    graph = discover(model, torch.randn(2, 4))
    (group,) = graph.groups
    found = estimate(model, graph, ActivationNorm(), {"x": x})[group.name]
    hidden = torch.cat([model.up(x).relu(), model.up(2 * x).relu()])
    torch.testing.assert_close(found, hidden.norm(dim=0).detach())


def test_convolutions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 2), nn.ReLU())
    graph = discover(model, torch.randn(2, 2, 7, 6))
    group = next(g for g in graph.groups if g.size == 5)
    images = torch.randn(3, 2, 7, 6)
    hidden = model[0](images).relu().detach().double().numpy()
    weight = model[2].weight.detach().double().numpy()
    criteria = [WandaSP(), FLAP("IFV"), ActivationNorm(), ActivationNorm(1)]
    found = estimate(model, graph, criteria, images, groups=[group], batch_size=2)
    wanda, flap, norm, mean = (scores[group.name].numpy() for scores in found)
    energy = np.array([(hidden[:, j] ** 2).sum() / 3 for j in range(5)])
    columns = np.array([abs(weight[:, j]).sum() / 4 for j in range(5)])
    np.testing.assert_allclose(wanda, columns * np.sqrt(energy), rtol=1e-4)
    variance = np.array([hidden[:, j].var(ddof=1) for j in range(5)])
    np.testing.assert_allclose(flap, (variance - variance.mean()) / variance.std(ddof=1), rtol=1e-4)
    np.testing.assert_allclose(norm, np.sqrt(energy * 3), rtol=1e-4)
    np.testing.assert_allclose(mean, abs(hidden).mean((0, 2, 3)), rtol=1e-4)


def test_transposed_weights_of_gpt2() -> None:
    config = GPT2Config(n_embd=12, n_layer=1, n_head=3, vocab_size=90, n_positions=16)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    graph = discover(model, input_ids=IDS[:2])
    (group,) = (g for g in graph.groups if g.kind == "mlp")
    seen: list[Tensor] = []
    layer = model.transformer.h[0].mlp.c_proj
    handle = layer.register_forward_hook(lambda m, args, y: seen.append(args[0].detach().double()))
    with torch.no_grad():
        model(IDS)
    handle.remove()
    norms = (seen[0].square().sum((0, 1)) / len(IDS)).sqrt()
    expected = layer.weight.detach().double().abs().mean(1) * norms  # (in, out)
    found = estimate(model, graph, WandaSP(), IDS, kinds=["mlp"])[group.name]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_a_weight_that_no_module_applies() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 6)
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x).relu() @ self.weight

    graph = discover(Bare(), torch.randn(2, 4))
    match = r"FLAP\(.*\) cannot score .* the weight 'weight' belongs to Bare, .* Taylor"
    with pytest.raises(CriterionError, match=match):
        estimate(Bare(), graph, FLAP(), torch.randn(5, 4))


def test_a_module_that_is_never_called() -> None:
    class Aside(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.up(x).relu(), self.down.weight)

    graph = discover(Aside(), torch.randn(2, 4))
    with pytest.raises(CriterionError, match=r"no calibration token .* 'down\.weight'"):
        estimate(Aside(), graph, WandaSP(), torch.randn(5, 4))


@pytest.mark.parametrize("others", [[], [Taylor()], [Taylor(2)]], ids=["forward", "1", "2"])
def test_the_model_is_left_as_it_was(others: list[Taylor]) -> None:
    model = MLP().train()
    graph = discover(model, torch.randn(2, 4))
    x = {"x": torch.randn(5, 4)}
    estimate(model, graph, [WandaSP(), *others], x, loss_fn=loss)
    calls = []

    def fail(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        calls.append(hooks(model))
        if len(calls) > 1:
            raise RuntimeError("no loss today")
        return loss(model, batch)

    with pytest.raises(RuntimeError, match="no loss today"):
        estimate(model, graph, [WandaSP(), *others], x, loss_fn=fail, batch_size=1)
    assert calls[0] > 0
    assert hooks(model) == 0
    assert model.training
    assert model.down.training
    for parameter in model.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert not parameter._post_accumulate_grad_hooks


def test_a_third_party_criterion_that_looks_at_inputs() -> None:
    from fxprune.groups.group import Group
    from fxprune.importance import Input, InputCriterion

    class Mean(InputCriterion):
        def member(self, group: Group, source: Input) -> Tensor:
            return source.fold(source.statistics.mean, group.dim)

    model, x = MLP(), torch.randn(7, 4)
    graph = discover(model, torch.randn(2, 4))
    (scores,) = estimate(model, graph, Mean(), x).values()
    torch.testing.assert_close(scores, model.up(x).relu().mean(0).detach())
