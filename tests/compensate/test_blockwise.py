"""Blockwise distillation: every block's own parameters, and nothing else, come nearer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.compensate import blockwise
from fxprune.compensate.blockwise import Distillation, Schedule, exits
from fxprune.compensate.dense import Dense
from fxprune.errors import CalibrationError
from fxprune.plan import Plan
from fxprune.trace.lockstep import Lockstep
from tests.compensate.test_compensate import Case, masked, values
from tests.marks import but_slow
from tests.zoo import BY_NAME, disturb

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
FAST = Schedule(epochs=3, learning_rate=5e-3, patience=3)
IDS = torch.randint(3, 101, (96, 13), generator=torch.Generator().manual_seed(7))


def disturbed(name: str) -> Any:
    model = BY_NAME[name].build()
    disturb(model)
    return model


def mended(case: Case, data: Any, **options: Any) -> tuple[Any, Any]:
    small = case.fresh()
    options = {"method": "blockwise", "schedule": FAST, "batch_size": 8, **options}
    return small, fxprune.compensate(case.traced, small, case.plan, data, **options)


@pytest.mark.parametrize(
    "name",
    # Written in other ways: a norm at the end of a block, views around its sums, parallel branches.
    but_slow(["llama", "bert", "opt", "gpt2", "falcon_grouped", "mixtral", "t5"], "opt", "gpt2"),
)
def test_blocks_come_nearer(name: str) -> None:
    case = Case(name, "mlp", "attention", model=disturbed(name))
    _, kwargs = BY_NAME[name].example(96, 13)
    data = kwargs if name == "t5" else {"input_ids": IDS}
    original = values(case.model)
    small, report = mended(case, data, temperature=False)
    assert [block.name for block in report.blocks] == [
        e.block.name for e in exits(case.traced, small, Dense.of(case.traced, whole=True))
    ]
    assert len(report.blocks) == len(fxprune.find_branches(case.traced).of("block"))
    nearer = [block.after < block.before for block in report.blocks if block.after is not None]
    assert all(block.after <= block.before for block in report.blocks)
    assert sum(nearer) >= len(nearer) - 1
    for key, value in values(case.model).items():
        assert torch.equal(value, original[key])


def test_a_stream_that_lost_channels() -> None:
    case = Case("llama", "channel", "mlp", model=disturbed("llama"))
    _, report = mended(case, {"input_ids": IDS}, temperature=False)
    assert len(report.blocks) == 2
    for block in report.blocks:
        assert block.before is not None
        assert block.after < block.before


def test_only_what_a_block_reads_alone_is_trained() -> None:
    """Not the embedding, which is the head too; but norms and what no pruned unit reads."""
    case = Case("llama", "mlp")
    small, _ = mended(case, {"input_ids": IDS}, temperature=False, scope="pruned")
    changed = {
        name
        for name, value in values(small).items()
        if not torch.equal(value, values(case.small)[name])
    }
    whole = {name for name in values(small) if ".layers." in name}
    assert changed == whole


def test_ignored_modules_and_the_same_twice() -> None:
    case = Case("llama", "mlp")
    ignored = "model.layers.0.self_attn"
    small, report = mended(case, {"input_ids": IDS}, ignore=[ignored])
    again, same = mended(case, {"input_ids": IDS}, ignore=[ignored])
    before = values(case.small)
    for name, value in values(small).items():
        assert torch.equal(value, values(again)[name])
        if name.startswith(ignored):
            assert torch.equal(value, before[name])
    assert report.blocks == same.blocks


def test_padding_does_not_count() -> None:
    """Whatever stands at places that the mask hides, the result is the same."""
    case = masked()
    mask = torch.ones_like(IDS)
    mask[:, 9:] = 0
    found = []
    for padding in (5, 77):
        ids = torch.where(mask == 1, IDS, padding)
        found.append(mended(case, {"input_ids": ids, "attention_mask": mask})[0])
    for one, other in zip(*(values(each).values() for each in found), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_an_error_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama", "mlp")
    small = case.fresh()
    before = values(small)
    train, done = Distillation._train, []

    def second_fails(self: Any, *args: Any) -> Any:
        found = train(self, *args)
        done.append(found)
        return found if len(done) < 2 else (float("nan"), float("nan"))

    monkeypatch.setattr(Distillation, "_train", second_fails)
    with pytest.raises(CalibrationError, match=r"layers\.1:block"):
        fxprune.compensate(
            case.traced, small, case.plan, {"input_ids": IDS}, method="blockwise", batch_size=8
        )
    for name, value in values(small).items():
        assert torch.equal(value, before[name])


def test_half_precision_is_trained_in_single() -> None:
    """Steps far below the spacing of bfloat16 add up."""
    case = Case("llama", "mlp", model=copy.deepcopy(BY_NAME["llama"].build()).bfloat16())
    small, report = mended(case, {"input_ids": IDS}, schedule=Schedule(20, 1e-3, 20))
    assert all(value.dtype == torch.bfloat16 for value in values(small).values())
    assert all(block.after < block.before for block in report.blocks)


def test_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """They change little, and a graph that refuses them is trained without."""
    case = Case("llama", "mlp")
    ahead = Lockstep.ahead

    def refuses(self: Lockstep, *args: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return ahead(self, *args)

    def trained(fast: bool) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(blockwise, "_made_for_bfloat16", lambda device: fast)
        return values(mended(case, {"input_ids": IDS})[0])

    plain, fast = trained(False), trained(True)
    monkeypatch.setattr(Lockstep, "ahead", refuses)
    refused = trained(True)
    for name, value in plain.items():
        assert torch.equal(refused[name], value)
        torch.testing.assert_close(fast[name], value, atol=2e-3, rtol=0.0)
    assert any(not torch.equal(fast[name], value) for name, value in plain.items())


def test_auto_trains_where_much_goes() -> None:
    case, data = Case("llama", "mlp", "attention", "channel"), {"input_ids": IDS.repeat(2, 1)}
    assert case.plan.parameters_after < 0.7 * case.plan.parameters_before
    ways: dict[str, Any] = {"method": "auto", "temperature": False, "batch_size": 4}
    assert mended(case, data, **ways)[1].method == "blockwise"
    assert mended(case, {"input_ids": IDS}, **ways)[1].method == "least-squares"
    assert mended(case, data, scope="pruned", **ways)[1].method == "least-squares"
    assert mended(Case("llama", "mlp"), data, **ways)[1].method == "least-squares"
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    traced = fxprune.trace(model, torch.randn(3, 4))
    plan = Plan.of(fxprune.discover(traced), {"0:units": (0, 1)})
    small = fxprune.rewrite(traced, plan)
    assert fxprune.compensate(traced, small, plan, torch.randn(160, 4), **ways).method == (
        "least-squares"
    )


def test_what_is_refused() -> None:
    case = Case("llama", "mlp")
    with pytest.raises(CalibrationError, match="one batch"):
        mended(case, {"input_ids": IDS}, batch_size=None)
    for wrong in ({"epochs": 0}, {"learning_rate": float("nan")}, {"patience": 0}):
        with pytest.raises(CalibrationError, match=next(iter(wrong))):
            Schedule(**wrong)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    traced = fxprune.trace(model, torch.randn(3, 4))
    graph = fxprune.discover(traced)
    plan = Plan.of(graph, {graph.groups[0].name: (0, 1, 2)})
    with pytest.raises(CalibrationError, match="no blocks"):
        fxprune.compensate(
            traced, fxprune.rewrite(traced, plan), plan, torch.randn(6, 4), method="blockwise"
        )
