"""Pruning part by part in a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune import Gradual, GradualPruner
from fxprune.errors import CriterionError, SelectionError
from tests.hf import tiny
from tests.marks import but_slow

IDS = torch.randint(0, 256, (40, 12), generator=torch.Generator().manual_seed(0))


def batch(step: int) -> dict[str, torch.Tensor]:
    ids = IDS[4 * (step % 10) :][:4]
    return {"input_ids": ids, "labels": ids}


def loop(pruner: GradualPruner, optimizer: Any, steps: int) -> list[nn.Module]:
    models = []
    for step in range(1, steps + 1):
        model: Any = pruner.model
        model(**batch(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        models.append(pruner.after(step, batch(step)))
    return models


@pytest.mark.parametrize("compensation", but_slow([None, "auto"], None))
def test_a_language_model_on_a_cubic_schedule(compensation: Any) -> None:
    model = tiny.llama(intermediate_size=64).train()
    whole = model.num_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = Gradual("30%", begin=1, end=7, every=2)
    pruner = GradualPruner(model, optimizer, schedule, compensation=compensation, batches=3)
    models: list[Any] = loop(pruner, optimizer, 8)
    assert [m is models[0] for m in models] == [True, True] + 6 * [False]
    left = [m.num_parameters() / whole for m in models]
    for step, ratio in schedule.steps.items():
        assert left[step - 1] <= 1 - ratio
        assert left[step - 1] > 1 - ratio - 0.02
    last = models[-1]
    assert type(last) is type(model)
    assert last.training
    assert last.model.layers[0].mlp.up_proj.out_features < 64
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in last.parameters()
    }
    assert [len(plan.kept) > 0 for plan in pruner.plans] == [True] * 3
    # One plan leads from the original to what is left.
    plan = pruner.plan
    assert plan.parameters_before == whole
    assert plan.parameters_after == last.num_parameters()
    small = fxprune.shrink(tiny.llama(intermediate_size=64), plan)
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in last.named_parameters()
    }


def test_what_is_scored_are_the_last_batches(monkeypatch: Any) -> None:
    import sys

    seen: list[Any] = []
    gradual = sys.modules["fxprune.recover.gradual"]
    original = gradual.prune

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options["calibration"])
        return original(*args, **options)

    monkeypatch.setattr(gradual, "prune", watched)
    model = tiny.llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = GradualPruner(
        model, optimizer, Gradual(at={3: 0.05, 6: "5%", 7: 0.1}), batches=2, criterion="taylor",
        compensation=None, verify=False,
    )  # fmt: skip
    loop(pruner, optimizer, 7)
    assert [[int(b["input_ids"][0, 0]) for b in each] for each in seen] == [
        [int(batch(step)["input_ids"][0, 0]) for step in steps] for steps in ((2, 3), (6, 7))
    ]


class Net(nn.Module):
    """No language model."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(6, 40), nn.Linear(40, 30), nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down(self.mid(self.up(x).relu()).relu())
        return found


def test_any_module() -> None:
    torch.manual_seed(0)
    model = Net()
    before = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch["x"]), batch["y"])

    pruner = GradualPruner(
        model, optimizer, Gradual(0.5, end=20, every=10), args=(x[:2],), loss_fn=loss_fn
    )
    for step in range(1, 26):
        loss = loss_fn(pruner.model, {"x": x, "y": y})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.after(step, {"x": x, "y": y})
    small = pruner.model
    assert isinstance(small, fx.GraphModule)
    left = sum(p.numel() for p in small.parameters())
    assert pruner.plan.parameters_after == left <= 0.5 * before
    assert pruner.plan.parameters_before == before
    for parameter in small.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


def test_what_is_refused() -> None:
    model = tiny.llama()
    for options in (
        {"pruning_ratio": 0.2},
        {"depth": fxprune.Depth(remove=1)},
        {"stream": True},
        {"share": False},
    ):
        with pytest.raises(SelectionError, match=f"{next(iter(options))}= is not for pruning whi"):
            GradualPruner(model, None, Gradual(0.1, end=5), **options)  # type: ignore[arg-type]
    with pytest.raises(SelectionError, match="steps= is not for"):
        GradualPruner(model, None, Gradual(0.1, end=5), config=fxprune.PruneConfig(steps=2))
    with pytest.raises(SelectionError, match="batches=0: at least 1"):
        GradualPruner(model, None, Gradual(0.1, end=5), batches=0)
    pruner = GradualPruner(model, None, Gradual(at={1: 0.1}))
    with pytest.raises(SelectionError, match="nothing went yet"):
        _ = pruner.plan
    with pytest.raises(CriterionError, match="needs calibration data"):
        pruner.after(1)
    assert pruner.model is model
