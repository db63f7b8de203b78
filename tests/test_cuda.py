"""The same on a GPU as on the CPU: ``pytest -n 0 tests/test_cuda.py``.

Skipped without one, or run on ``FXPRUNE_TEST_DEVICE``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

import fxprune
from fxprune.groups.dependency import DependencyGraph
from fxprune.plan import Plan
from tests.llama import tiny_llama
from tests.zoo import BY_NAME, CASES

DEVICE = os.environ.get("FXPRUNE_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"
)
IDS = torch.randint(0, 90, (64, 32), generator=torch.Generator().manual_seed(0))
CRITERIA = (
    fxprune.Magnitude(), fxprune.Taylor(), fxprune.Taylor(order=2), fxprune.Taylor(order="mixed"),
    fxprune.WandaSP(), fxprune.FLAP(), fxprune.ActivationNorm(), fxprune.PeakToPeak(),
    fxprune.OBS(),
)  # fmt: skip


def drawn(graph: DependencyGraph) -> Plan:
    """Seven of ten units of every group, at random."""
    draw = torch.Generator().manual_seed(0)
    orders = {
        group.name: torch.randperm(group.size, generator=draw).tolist()
        for group in graph.groups
        if group.size > 1
    }
    return Plan.of(graph, {n: sorted(units[: len(units) * 7 // 10]) for n, units in orders.items()})


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_the_oracle_holds(name: str, attention: str) -> None:
    model = BY_NAME[name].build(attention).to(DEVICE)
    inputs: Any = tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), BY_NAME[name].example())
    traced = fxprune.trace(model, *inputs)
    graph = fxprune.discover(traced)
    plan = drawn(graph)
    fxprune.verify(traced, fxprune.rewrite(traced, plan), plan)


@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_scores_plans_and_compensation_are_those_of_the_cpu(criterion: fxprune.Criterion) -> None:
    found: dict[str, tuple[Any, list[torch.Tensor]]] = {}
    for device in ("cpu", DEVICE):
        model, ids = tiny_llama().to(device), IDS.to(device)
        traced = fxprune.trace(model, kwargs={"input_ids": ids[:2, :9]})
        graph = fxprune.discover(traced)
        scores = fxprune.estimate(model, graph, criterion, ids, kinds=("mlp", "attention"))
        plan = fxprune.select(graph, scores, budget=fxprune.Budget(params=0.9))
        logits = []
        for scope in ("pruned", "all"):
            small = fxprune.rewrite(traced, plan)
            fxprune.compensate(traced, small, plan, ids, scope=scope)
            logits.append(small(input_ids=ids[:2, :9]).logits.detach().cpu())
        found[device] = plan.kept, logits
    assert found["cpu"][0] == found[DEVICE][0]
    torch.testing.assert_close(found[DEVICE][1], found["cpu"][1], rtol=1e-3, atol=1e-3)


def test_depth_is_that_of_the_cpu() -> None:
    removed = []
    for device in ("cpu", DEVICE):
        model, ids = tiny_llama(num_hidden_layers=4).to(device), IDS.to(device)
        criteria = (fxprune.PPL(), fxprune.BlockInfluence(), fxprune.AngularDistance())
        results = [
            fxprune.prune(
                model,
                kwargs={"input_ids": ids[:2, :9]},
                depth=fxprune.Depth(remove=1, keep_first=0, keep_last=0),
                depth_criterion=criterion,
                calibration=ids,
            )
            for criterion in criteria
        ]
        removed.append([result.plan.removed for result in results])
    assert removed[0] == removed[1]


def test_from_prune_to_a_model_on_disk(tmp_path: Path) -> None:
    with torch.device(DEVICE):  # its rotary frequencies are not, to the bit, those of the CPU
        model = tiny_llama(hidden_size=768)
    example = IDS[:2, :9].to(DEVICE)
    result = fxprune.prune(
        model,
        kwargs={"input_ids": example},
        pruning_ratio=0.2,
        calibration=IDS,
        compensation="least-squares",
    )
    small = fxprune.shrink(model, result.plan, result.graph_module)
    done = fxprune.recover(
        small,
        IDS,
        training=fxprune.Training(
            steps=4, batch_size=8, micro_batch_size=4, length=16, evaluate_every=4
        ),
        device="cpu" if DEVICE == "cpu" else None,
    )
    assert all(0 < step.loss < 30 for step in done.history.steps)
    small = small.to(DEVICE)
    fxprune.save(small, tmp_path / "model")
    fxprune.save(result.graph_module, tmp_path / "graph", plan=result.plan, traced=result.traced)
    for name, saved in (("model", small), ("graph", result.graph_module)):
        again = fxprune.load(tmp_path / name, device=DEVICE)
        with torch.no_grad():
            expected, logits = saved(input_ids=example).logits, again(input_ids=example).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert small.generate(example, max_new_tokens=4, pad_token_id=0).shape == (2, 13)


def test_a_budget_of_latency() -> None:
    model = tiny_llama(
        hidden_size=512, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=4
    ).to(DEVICE)
    result = fxprune.prune(
        model,
        kwargs={"input_ids": IDS[:2, :9].to(DEVICE)},
        budget=fxprune.Budget(latency=0.9, shape=(4, 64)),
        criterion=fxprune.Magnitude(),
    )
    assert result.latency is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_it_compiles() -> None:
    model, ids = tiny_llama().to(DEVICE), IDS[:4, :11].to(DEVICE)
    traced = fxprune.trace(model, kwargs={"input_ids": ids})
    small = fxprune.rewrite(traced, drawn(fxprune.discover(traced)))
    compiled = torch.compile(small, dynamic=True)
    with torch.no_grad():
        expected, logits = small(input_ids=ids).logits, compiled(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
