"""Pruning and recovery in turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.errors import SelectionError
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.prune_and_recover import prune_and_recover
from fxprune.recover.settings import Training
from tests.hf import tiny

TRAINING = Training(steps=2, batch_size=4, length=12, learning_rate=1e-2)
DATA = torch.randint(0, 256, (16, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "method",
    [LoRA(), pytest.param(FullTraining(), marks=pytest.mark.slow)],
    ids=["lora", "full"],
)
def test_in_turns(method: LoRA | FullTraining, tmp_path: Path) -> None:
    model = tiny.llama(intermediate_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = sum(parameter.numel() for parameter in model.parameters())
    done = prune_and_recover(
        model,
        DATA,
        method,
        pruning_ratio=0.3,
        steps=3,
        calibration=DATA[:4],
        recovery={"training": TRAINING, "validation": 0.0, "out": tmp_path / "run"},
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        f"step-{number}" for number in (1, 2, 3)
    ]
    assert len(done.recoveries) == 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    left = sum(parameter.numel() for parameter in done.graph_module.parameters())
    assert left == done.plan.parameters_after
    assert abs(left / whole - 0.7) < 0.02
    # The plan leads from the original to these shapes, and the shrunk model takes the weights.
    small = fxprune.shrink(model, done.plan, done.graph_module)
    ids = DATA[:2]
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, done.graph_module(input_ids=ids).logits)
    again = fxprune.load(
        fxprune.save(done.graph_module, tmp_path / "m", plan=done.plan, traced=done.traced)
    )
    with torch.no_grad():
        found, expected = (m(input_ids=ids).logits for m in (again, done.graph_module))
    assert torch.equal(found, expected)


def test_units_are_those_of_the_original() -> None:
    """Without training, two steps by a criterion that looks at single units end as one does."""
    model = tiny.llama()
    one = fxprune.prune(
        model, pruning_ratio=0.2, criterion=fxprune.Magnitude(), kinds=("mlp",), verify=False
    )
    done = prune_and_recover(
        model,
        DATA,
        FullTraining(),
        pruning_ratio=0.2,
        steps=2,
        criterion=fxprune.Magnitude(),
        kinds=("mlp",),
        recovery={
            "training": Training(steps=1, batch_size=4, length=12, learning_rate=1e-12),
            "validation": 0.0,
        },
    )
    assert done.plan.kept == one.plan.kept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pruning_ratio": 1.5}, "pruning_ratio"),
        ({"pruning_ratio": 0.2, "steps": 0}, "steps is 0"),
        ({"pruning_ratio": 0.2, "depth": fxprune.Depth(remove=1)}, "depth is not for"),
    ],
)
def test_refusals(options: dict[str, object], said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        prune_and_recover(tiny.llama(), DATA, **options)  # type: ignore[arg-type]
