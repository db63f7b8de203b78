"""Models without some units: what they share, what they forget, and what they must not change."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.branches.small import EXAMPLE, WIDTH, Block, Stack, check, run, small, traced
from tests.llama import tiny_llama

FIRST, SECOND = "model.layers.0", "model.layers.1"


@pytest.fixture(scope="module")
def llama() -> fxprune.Traced:
    return fxprune.trace(tiny_llama(num_hidden_layers=3))


def test_tensors_are_shared(llama: fxprune.Traced) -> None:
    short = fxprune.bypass(llama, [f"{SECOND}:block", f"{FIRST}:mlp"])
    for name, tensor in short.tensors.items():
        assert tensor is llama.tensors[name]
    held = dict(short.graph_module.named_parameters())
    assert set(held) == {n for n, t in short.tensors.items() if isinstance(t, nn.Parameter)}
    assert all(held[name].data_ptr() == llama.tensors[name].data_ptr() for name in held)


def test_the_original_is_untouched(llama: fxprune.Traced) -> None:
    code = llama.graph_module.code
    names, nodes = list(llama.tensors), list(llama.graph_module.graph.nodes)
    units = list(fxprune.find_branches(llama).units)
    short = fxprune.bypass(llama, [f"{SECOND}:attention"])
    run_with = {"input_ids": torch.arange(26).view(2, 13)}
    short.graph_module(**run_with)
    assert llama.graph_module.code == code
    assert list(llama.tensors) == names
    assert list(llama.graph_module.graph.nodes) == nodes
    assert list(fxprune.find_branches(llama).units) == units
    assert (llama.original, llama.removed, llama.dropped) == (None, (), frozenset())


def test_what_a_shorter_model_knows(llama: fxprune.Traced) -> None:
    short = fxprune.bypass(llama, [f"{SECOND}:mlp"])
    assert short.original is llama
    assert short.module is llama.module
    assert short.removed == (f"{SECOND}:mlp",)
    mlp = {f"mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}
    mlp.add("post_attention_layernorm.weight")
    assert short.dropped == {f"{SECOND}.{name}" for name in mlp}
    assert short.dropped == set(llama.tensors) - set(short.tensors)


def test_parameters_that_were_never_read_are_not_dropped() -> None:
    model = Stack(Block(), Block())
    model.unused = nn.Parameter(torch.zeros(3))
    whole = traced(model)
    short = fxprune.bypass(whole, ["layers.0:block"])
    assert "unused" not in short.dropped
    plan = fxprune.Plan.of(fxprune.discover(short), {})
    assert plan.parameters_before - plan.parameters_after == 2 * WIDTH * 12 + WIDTH + 12


def test_names_in_any_order_and_number_give_one_model(llama: fxprune.Traced) -> None:
    names = [f"{FIRST}:attention", f"{FIRST}:mlp", f"{SECOND}:mlp"]
    short = fxprune.bypass(llama, names)
    assert short.removed == tuple(names)
    shuffled = random.Random(1).sample(names, 3) + names[:1]
    assert shuffled[:3] != names
    assert fxprune.bypass(llama, shuffled) is short
    assert fxprune.bypass(llama, iter(names)) is short


def test_nothing_removed_is_the_model_itself(llama: fxprune.Traced) -> None:
    assert fxprune.bypass(llama, []) is llama


def test_a_block_covers_its_branches(llama: fxprune.Traced) -> None:
    both = fxprune.bypass(llama, [f"{SECOND}:mlp", f"{SECOND}:block", f"{FIRST}:mlp"])
    assert both.removed == (f"{FIRST}:mlp", f"{SECOND}:block")
    assert fxprune.bypass(both, [f"{SECOND}:attention"]) is both


def test_removing_more_adds(llama: fxprune.Traced) -> None:
    once = fxprune.bypass(llama, [f"{SECOND}:attention"])
    twice = fxprune.bypass(once, [f"{FIRST}:mlp"])
    assert twice.removed == (f"{FIRST}:mlp", f"{SECOND}:attention")
    assert twice.original is llama
    assert twice is fxprune.bypass(llama, twice.removed)
    assert fxprune.bypass(twice, [f"{SECOND}:block"]).removed == (
        f"{FIRST}:mlp",
        f"{SECOND}:block",
    )


def test_the_units_that_are_left(llama: fxprune.Traced) -> None:
    """Under their old names, on the nodes and parameters of the shorter graph."""
    short = fxprune.bypass(llama, [f"{FIRST}:block", f"{SECOND}:mlp"])
    before, left = fxprune.find_branches(llama), fxprune.find_branches(short)
    gone = {f"{FIRST}:block", f"{FIRST}:attention", f"{FIRST}:mlp", f"{SECOND}:mlp"}
    assert set(before.units) - set(left.units) == gone
    nodes = set(short.graph_module.graph.nodes)
    for unit in left.units.values():
        assert {unit.entry, unit.exit, unit.skip, *unit.inside} <= nodes
        assert set(unit.parameters) <= set(short.tensors)
    assert left[f"{SECOND}:block"].branches == (f"{SECOND}:attention",)
    assert left[f"{SECOND}:block"].entry.name.startswith("embedding")


def test_a_block_without_branches_is_none(llama: fxprune.Traced) -> None:
    short = fxprune.bypass(llama, [f"{SECOND}:attention", f"{SECOND}:mlp"])
    assert f"{SECOND}:block" not in fxprune.find_branches(short).units
    same = fxprune.bypass(llama, [f"{SECOND}:block"])
    assert short.dropped == same.dropped


def test_the_norm_behind_a_block_stays_without_its_branches() -> None:
    """After-norm blocks: without branches a norm is left, without the block nothing."""

    class After(Block):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(super().forward(x))

    model = traced(Stack(After(), After()))
    branch, block = (fxprune.bypass(model, [f"layers.0:{kind}"]) for kind in ("mlp", "block"))
    assert block.dropped - branch.dropped == {"layers.0.norm.weight", "layers.0.norm.bias"}
    for name in ("layers.0:mlp", "layers.0:block"):
        check(model, name)


def test_shared_weights_go_with_the_last_that_reads_them() -> None:
    shared = Block()
    model = traced(Stack(shared, Block(), shared))
    first, last = "layers.0:block", "layers.2:block"
    assert fxprune.bypass(model, [first]).dropped == frozenset()
    assert len(fxprune.bypass(model, [first, last]).dropped) == 4
    for names in ([first], [last], [first, last]):
        check(model, *names)


def test_works_on_meta() -> None:
    with torch.device("meta"):
        model = tiny_llama(num_hidden_layers=3)
    on_meta = fxprune.trace(model)
    short = fxprune.bypass(on_meta, [f"{SECOND}:block"])
    assert all(tensor.is_meta for tensor in short.tensors.values())
    plan = fxprune.Plan.of(fxprune.discover(short), {})
    real = tiny_llama(num_hidden_layers=3)
    small_model = fxprune.rewrite(fxprune.trace(real), plan)
    assert sum(p.numel() for p in small_model.parameters()) == plan.parameters_after
    expected = sum(p.numel() for p in tiny_llama(num_hidden_layers=2).parameters())
    assert plan.parameters_after == expected


# In place


def test_sums_in_place() -> None:
    model = traced(Stack(*(Block(in_place=True) for _ in range(3))))
    units = fxprune.find_branches(model)
    assert len(units.of("mlp")) == len(units.of("block")) == 3
    for names in (["layers.1:mlp"], ["layers.0:block"], ["layers.0:mlp", "layers.2:block"]):
        check(model, *names)
    removed = fxprune.bypass(model, ["layers.0:block", "layers.1:mlp"])
    x = EXAMPLE.clone()
    expected = model.module.head(model.module.layers[2](model.module.embed(EXAMPLE)))
    torch.testing.assert_close(removed.graph_module(x), expected)
    assert torch.equal(x, EXAMPLE)


def add_in_place(m: Any, x: Tensor) -> Tensor:
    y = x + m.a(x)
    y += m.b(torch.relu(y))
    return m.c(y) * x


def activation_in_place(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.relu_(x + m.a(x))) * x


def a_view_in_place(m: Any, x: Tensor) -> Tensor:
    y = x + m.a(x)
    y.view(-1).clamp_(-0.5, 0.5)
    return m.c(y) * x


def into_the_branch(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y += x
    y.clamp_(-0.5, 0.5)
    return m.c(y) * x


@pytest.mark.parametrize(
    "body", [add_in_place, activation_in_place, a_view_in_place, into_the_branch]
)
def test_the_stream_is_not_changed_in_place_of_a_sum(body: Any) -> None:
    """The sum was a value of its own, and the stream that replaces it is read again later."""
    model = small(body)
    check(model, ":mlp")


def test_an_input_is_not_changed_in_place_of_a_sum() -> None:
    model = small(activation_in_place, first=nn.Identity())
    x = EXAMPLE.clone()
    run(fxprune.bypass(model, [":mlp"]), x)
    fxprune.bypass(model, [":mlp"]).graph_module(x)
    assert torch.equal(x, EXAMPLE)


def test_blocks_in_place_around_a_value_that_is_read_later() -> None:
    class Around(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            y = x
            for layer in self.layers:
                y = torch.relu_(layer(y))
            return self.head(y) * x.sum(-1, keepdim=True)

    model = traced(Around(Block(), Block()))
    for names in (["layers.0:block"], ["layers.0:block", "layers.1:block"]):
        check(model, *names)


def test_a_shorter_model_copies_nothing_without_need(llama: fxprune.Traced) -> None:
    short = fxprune.bypass(llama, [f"{FIRST}:block", f"{SECOND}:mlp"])
    counts = [
        sum(node.target is torch.ops.aten.clone.default for node in t.graph_module.graph.nodes)
        for t in (short, llama)
    ]
    assert counts[0] <= counts[1]
    in_place = traced(Stack(*(Block(in_place=True) for _ in range(3))))
    nodes = fxprune.bypass(in_place, ["layers.0:mlp", "layers.1:block"]).graph_module.graph.nodes
    assert not any(node.target is torch.ops.aten.clone.default for node in nodes)


def test_a_shorter_model_trains(llama: fxprune.Traced) -> None:
    short = fxprune.bypass(llama, [f"{FIRST}:block", f"{SECOND}:attention"])
    plan = fxprune.Plan.of(fxprune.discover(short), {})
    model = fxprune.rewrite(llama, plan)
    model(input_ids=torch.arange(26).view(2, 13)).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        parameter.grad = None  # unpruned parameters are the original's own
