"""What goes with a branch or a block is made up for: the stream comes back to the original's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.compensate import compensate
from fxprune.compensate.blockwise import Schedule, exits
from fxprune.compensate.dense import Dense
from fxprune.errors import CalibrationError
from fxprune.plan import Plan
from tests.branches import small as tiny
from tests.branches.small import Block, Stack
from tests.compensate.by_hand import io, relative, ridge
from tests.llama import tiny_llama
from tests.zoo import BY_NAME, disturb

IDS = torch.randint(3, 90, (24, 13), generator=torch.Generator().manual_seed(5))
DAMPING = 0.03
LAYER = "model.layers.{}"


@functools.cache
def llama() -> fxprune.Traced:
    """Five layers that all do something; never changed."""
    model = tiny_llama(num_hidden_layers=5)
    disturb(model)
    return fxprune.trace(model)


@functools.cache
def zoo(name: str) -> fxprune.Traced:
    model = BY_NAME[name].build()
    disturb(model)
    return fxprune.trace(model, *BY_NAME[name].example())


def cut(
    traced: fxprune.Traced, removed: tuple[str, ...], every: int = 1
) -> tuple[Plan, torch.fx.GraphModule]:
    """The model without some units, with its own tensors; one MLP unit in ``every`` stays."""
    graph = fxprune.discover(fxprune.bypass(traced, removed))
    mlps = [group for group in graph.groups if group.kind == "mlp"] if every > 1 else []
    plan = Plan.of(graph, {group.name: tuple(range(0, group.size, every)) for group in mlps})
    return plan, fxprune.rewrite(traced, plan, share=False)


def mended(
    traced: fxprune.Traced, plan: Plan, small: torch.fx.GraphModule, data: Any, **options: Any
) -> fxprune.CompensationReport:
    options = {"damping": DAMPING, "batch_size": 7, "temperature": False, **options}
    return compensate(traced, small, plan, data, **options)


def error(traced: fxprune.Traced, small: nn.Module, data: dict[str, Tensor]) -> float:
    """Of the outputs, against the whole original."""
    with torch.no_grad():
        dense, found = (getattr(o, "logits", o) for o in (traced.module(**data), small(**data)))
    return relative(found - dense, dense)


def exit_of(traced: fxprune.Traced, name: str) -> torch.fx.Node:
    return fxprune.find_branches(traced)[name].exit


# What stands for what


def test_what_stands_before_a_hole_aims_behind_it() -> None:
    traced = llama()
    shorter = fxprune.bypass(traced, [LAYER.format(i) + ":block" for i in (1, 2)])
    dense = Dense.of(shorter, whole=True)
    before, behind = (exit_of(each, "model.layers.0:block") for each in (shorter, traced))
    assert dense.node(before) is behind
    assert dense.aim(before) is exit_of(traced, "model.layers.2:block")
    assert dense.aim(before, dense.aim(before)) is behind
    last = exit_of(shorter, "model.layers.4:block")
    assert dense.aim(last) is dense.node(last) is exit_of(traced, "model.layers.4:block")
    alone = Dense.of(shorter, whole=False)
    assert alone.traced is shorter
    assert alone.aim(before) is before


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_what_stands_before_a_branch_aims_behind_its_sum(kind: str) -> None:
    traced = llama()
    name = f"model.layers.1:{kind}"
    shorter = fxprune.bypass(traced, [name])
    dense = Dense.of(shorter, whole=True)
    (behind,) = fxprune.find_branches(traced)[name].exit.users
    skip = fxprune.find_branches(traced)[name].skip
    (before,) = [new for new, olds in dense.places.items() if skip in olds]
    assert dense.aim(before) is behind


def test_in_place() -> None:
    """What enters is copied, for it is written into; the copy is what later blocks read."""
    traced = tiny.traced(Stack(*(Block(in_place=True) for _ in range(3))))
    shorter = fxprune.bypass(traced, ["layers.1:block"])
    dense = Dense.of(shorter, whole=True)
    before = exit_of(shorter, "layers.0:block")
    assert dense.aim(before) is exit_of(traced, "layers.1:block")


def test_a_value_that_is_read_across_the_hole_stays_what_it_is() -> None:
    class Across(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(3))
            self.side, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            first = self.layers[0](x)
            last = self.layers[2](self.layers[1](first))
            return self.head(torch.relu(last) * self.side(first))

    traced = tiny.traced(Across())
    shorter = fxprune.bypass(traced, ["layers.1:block"])
    dense = Dense.of(shorter, whole=True)
    before = exit_of(shorter, "layers.0:block")
    assert len(dense.places[before]) == 2
    assert dense.aim(before) is exit_of(traced, "layers.0:block")


# Least squares


@pytest.mark.parametrize("removed", [(0,), (1, 2), (2, 4), (1, 3)])
def test_it_is_the_direct_solve_towards_the_stream_of_the_original(
    removed: tuple[int, ...],
) -> None:
    """Product by product, the last before a hole towards the stream behind it."""
    traced = llama()
    names = tuple(f"model.layers.{i}:block" for i in removed)
    plan, small = cut(traced, names)
    _, kept = cut(traced, names)
    report = mended(traced, plan, small, {"input_ids": IDS})
    stay = [i for i in range(5) if i not in removed]
    norms = _norms(stay)
    assert len(report.consumers) == 7 * len(stay)
    for each in report.consumers:
        x, y = io(kept, [each.name], {"input_ids": IDS})[each.name]
        if each.name in norms:
            before, after = norms[each.name]
            target = (
                io(traced.module, [after], {"input_ids": IDS})[after][0]
                - io(kept, [before], {"input_ids": IDS})[before][0]
            )
        else:
            target = io(traced.module, [each.name], {"input_ids": IDS})[each.name][1]
        here, there = kept.get_submodule(each.name), small.get_submodule(each.name)
        change, _ = ridge(x, target - y, DAMPING, False)
        torch.testing.assert_close(
            there.weight, (here.weight + change).float(), atol=3e-4, rtol=3e-3
        )
        assert each.before == pytest.approx(relative(target - y, target), rel=1e-3, abs=1e-6)
        with torch.no_grad():
            here.weight.copy_(there.weight)


def _norms(stay: list[int]) -> dict[str, tuple[str, str]]:
    """Of each product what reads the stream before it here, and behind it in the original."""
    found = {}
    following = [f"{LAYER.format(i)}.input_layernorm" for i in stay[1:]] + ["model.norm"]
    for number, behind in zip(stay, following, strict=True):
        layer = LAYER.format(number)
        first, second = f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"
        found[f"{layer}.self_attn.o_proj"] = first, second
        found[f"{layer}.mlp.down_proj"] = second, behind
    return found


@pytest.mark.parametrize(
    ("name", "unit", "every"),
    [
        # Without the last of two blocks, and the first, before which there is no product.
        *((name, "block 1", 1) for name in ("llama", "gpt2", "gpt_neox", "falcon_grouped", "opt")),
        *((name, "block 0", 1) for name in ("llama", "gpt2", "gpt_neox", "bert", "gemma2", "opt")),
        *((name, "attention 1", 1) for name in ("llama", "gpt_neox", "bert", "mixtral")),
        *((name, "mlp 1", 1) for name in ("llama", "gpt_neox", "falcon_grouped", "bert")),
        *(("t5", f"block {number}", 1) for number in (1, 3)),
        *(("llama", each, 2) for each in ("block 1", "mlp 0")),
    ],
)
def test_the_output_comes_nearer_to_the_original(name: str, unit: str, every: int) -> None:
    """With parallel branches, norms behind sums and on branches, views around them, dropout."""
    traced = zoo(name)
    kind, _, number = unit.partition(" ")
    units = fxprune.find_branches(traced).of(kind)
    _, kwargs = BY_NAME[name].example(24, 13)
    data = kwargs if name == "t5" else {"input_ids": IDS}
    plan, small = cut(traced, (units[int(number)].name,), every)
    assert fxprune.verify(traced, small, plan).max_abs_error < 1e-3
    before = error(traced, small, data)
    original = {key: value.clone() for key, value in traced.module.state_dict().items()}
    report = mended(traced, plan, small, data, batch_size=8)
    done = [each for each in report.consumers if each.skipped is None]
    assert all(each.after <= each.before + 1e-6 for each in done)
    assert error(traced, small, data) < before
    for key, value in traced.module.state_dict().items():
        assert torch.equal(value, original[key])


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_what_gave_nothing_is_not_missed(name: str) -> None:
    """The branches that go add zeros, so every product gives what it should already."""
    model = BY_NAME[name].build()
    disturb(model)
    traced = fxprune.trace(model, *BY_NAME[name].example())
    block = fxprune.find_branches(traced).of("block")[1]
    for each in block.branches:
        for key in fxprune.find_branches(traced)[each].parameters:
            with torch.no_grad():
                traced.tensors[key].zero_()
    plan, small = cut(traced, (block.name,))
    before = {key: value.clone() for key, value in small.state_dict().items()}
    report = mended(traced, plan, small, {"input_ids": IDS})
    assert all(each.before < 1e-5 for each in report.consumers)
    for key, value in small.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=1e-4, rtol=1e-3)


def test_what_lacks_nothing_keeps_its_values() -> None:
    """Before the first hole both models give the same: a solve would fit rounding alone."""
    traced = llama()
    plan, small = cut(traced, (LAYER.format(3) + ":block",))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    report = mended(traced, plan, small, IDS, damping=None)
    after = small.state_dict()
    changed = {n.split(".")[2] for n in before if not torch.equal(before[n], after[n])}
    # The last product before the hole aims behind it.
    assert changed == {"2", "4"}
    first = [each for each in report.consumers if each.name.startswith(LAYER.format(0))]
    assert len(first) == 7
    assert all(each.before == each.after < 1e-5 for each in first)


def test_targets_that_are_of_the_product_alone() -> None:
    """``dense`` is what the original gives there; ``propagated`` and ``bias`` know no hole."""
    traced = llama()
    removed = ("model.layers.1:block",)
    plan, small = cut(traced, removed)
    report = mended(traced, plan, small, {"input_ids": IDS}, target="dense")
    errors = {each.name: each.before for each in report.consumers}
    assert errors["model.layers.0.mlp.down_proj"] < 1e-6 < errors["model.layers.2.mlp.down_proj"]
    plan, small = cut(traced, removed)
    report = mended(traced, plan, small, {"input_ids": IDS}, target="propagated", scope="all")
    assert all(each.before < 1e-6 for each in report.consumers)
    plan, small = cut(traced, removed)
    assert not mended(traced, plan, small, {"input_ids": IDS}, method="bias").consumers


def test_the_removed_blocks_must_still_have_their_weights() -> None:
    traced = fxprune.trace(tiny_llama())
    plan = cut(traced, ("model.layers.1:block",))[0]
    small = fxprune.rewrite(traced, plan, consume=True)
    with pytest.raises(CalibrationError, match=r"layers\.1.*consume=True"):
        mended(traced, plan, small, {"input_ids": IDS})


# Blockwise


def test_the_last_block_before_a_hole_is_trained_towards_the_stream_behind_it() -> None:
    traced = llama()
    plan, small = cut(traced, ("model.layers.1:block", "model.layers.2:block"))
    shorter = fxprune.bypass(traced, plan.removed)
    found = exits(shorter, small, Dense.of(shorter, whole=True))
    assert [each.block.name for each in found] == [f"model.layers.{i}:block" for i in (0, 3, 4)]
    assert [each.there for each in found] == [
        exit_of(traced, f"model.layers.{i}:block") for i in (2, 3, 4)
    ]
    plain = error(traced, small, {"input_ids": IDS})
    fast = Schedule(epochs=3, learning_rate=3e-4, patience=3)
    report = mended(
        traced, plan, small, {"input_ids": IDS}, method="blockwise", schedule=fast, batch_size=4
    )
    assert all(block.after < block.before for block in report.blocks)
    with torch.no_grad():
        wanted = io(traced.module, ["model.layers.3.input_layernorm"], {"input_ids": IDS})
        stream = io(small, ["model.layers.3.input_layernorm"], {"input_ids": IDS})
    wanted, stream = (next(iter(each.values()))[0] for each in (wanted, stream))
    shorter_stream = io(
        cut(traced, plan.removed)[1], ["model.layers.3.input_layernorm"], {"input_ids": IDS}
    )["model.layers.3.input_layernorm"][0]
    assert relative(stream - wanted, wanted) < relative(shorter_stream - wanted, wanted)
    assert error(traced, small, {"input_ids": IDS}) < plain
