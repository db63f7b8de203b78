"""Runs continued from the middle: what they give, what they leave alone, what they cost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.trace.branching import BranchingRun
from fxprune.trace.lockstep import flatten
from tests.llama import tiny_llama
from tests.marks import but_slow
from tests.zoo import BY_NAME

IDS = torch.arange(21).view(3, 7) % 90


class Changed(fx.Interpreter):
    """A full run of the graph in which one node gives another value."""

    def __init__(self, module: fx.GraphModule, at: fx.Node, value: Tensor) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._at, self._value = at, value

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        return self._value.clone() if n is self._at else found


def full(module: fx.GraphModule, inputs: list[Any], at: fx.Node, value: Tensor) -> Any:
    copies = [each.clone() for each in inputs]
    flat = Changed(module, at, value).run(*copies, enable_io_processing=False)
    return module.graph.process_outputs(flat)


def floats(module: fx.GraphModule) -> list[fx.Node]:
    """Every node that gives a tensor of floats, but for weights and the output."""
    return [
        node
        for node in module.graph.nodes
        if node.op == "call_function"
        and isinstance(node.meta.get("val"), Tensor)
        and node.meta["val"].is_floating_point()
    ]


def leaf(output: Any) -> Tensor:
    value: Tensor = output if isinstance(output, Tensor) else output.logits
    return value


def graph(module: nn.Module, *args: Tensor) -> tuple[fx.GraphModule, list[Any]]:
    traced = fxprune.trace(module, args)
    return traced.graph_module, list(args)


def node(module: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in module.graph.nodes if n.name == name)


@pytest.fixture(scope="module")
def llama() -> fx.GraphModule:
    return fxprune.trace(tiny_llama()).graph_module


@pytest.mark.parametrize("name", but_slow(["llama", "t5", "resnet"], "resnet", "t5"))
@torch.no_grad()
def test_a_continued_run_is_a_full_run_of_the_changed_graph(name: str) -> None:
    entry = BY_NAME[name]
    args, kwargs = entry.example()
    module = fxprune.trace(entry.build(), args, kwargs).graph_module
    named = kwargs or {"image": args[0]}
    inputs = flatten(module, named)
    stops = floats(module)[::9]
    seen = []
    for at, values, _ in BranchingRun(module).stops(inputs, stops):
        seen.append(at)
        other = values[at] * 1.25
        found = BranchingRun(module).finish(at, values, {at: other})
        expected = leaf(full(module, inputs, at, other))
        assert expected.isfinite().all()
        assert torch.equal(leaf(found), expected), at.name
    assert seen == stops


@torch.no_grad()
def test_without_a_change_it_is_the_run_itself(llama: fx.GraphModule) -> None:
    run, expected = BranchingRun(llama), llama(input_ids=IDS).logits
    for at, values, _ in run.stops([IDS], floats(llama)[::25]):
        for _ in range(2):
            assert torch.equal(run.finish(at, values, {}).logits, expected)


@torch.no_grad()
def test_only_what_is_needed_later_is_alive(llama: fx.GraphModule) -> None:
    at = floats(llama)[40]
    order = list(llama.graph.nodes)
    later = set(order[order.index(at) + 1 :])
    for _, values, _ in BranchingRun(llama).stops([IDS], [at]):
        assert at in values
        assert all(any(user in later for user in node.users) for node in values)


# What is kept


@torch.no_grad()
def test_kept_values_outlive_their_last_use(llama: fx.GraphModule) -> None:
    ids = next(n for n in llama.graph.nodes if n.op == "placeholder")
    early, late = floats(llama)[3], floats(llama)[60]
    run = BranchingRun(llama)
    (before,) = [values[early] for _, values, _ in run.stops([IDS], [early])]
    for at, values, kept in run.stops([IDS], [early, late], [ids, early]):
        assert set(kept) == {ids, early}
        assert torch.equal(kept[ids], IDS)
        assert torch.equal(kept[early], before)
        assert (early in values) == (at is early)


@torch.no_grad()
def test_what_comes_later_is_not_kept_yet(llama: fx.GraphModule) -> None:
    early, late = floats(llama)[3], floats(llama)[60]
    seen = [set(kept) for _, _, kept in BranchingRun(llama).stops([IDS], [early, late], [late])]
    assert seen == [set(), {late}]


# In place


class InPlace(nn.Module):
    """Ops that write into the stream itself, and through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x + self.two(x)
        x.relu_()
        row = x[:, 0]
        y = self.two(x)
        row.add_(1)
        return x.mul_(2) + y


@torch.no_grad()
def test_ops_in_place_give_what_a_full_run_gives() -> None:
    module, inputs = graph(InPlace(), torch.randn(3, 4))
    run = BranchingRun(module)
    stops = floats(module)
    plain = fx.Interpreter(module).run(*inputs, enable_io_processing=False)
    for at, values, _ in run.stops(inputs, stops):
        same = run.finish(at, values, {})
        assert torch.equal(same, module.graph.process_outputs(plain)), at.name


@torch.no_grad()
def test_a_continuation_disturbs_neither_the_run_nor_its_inputs() -> None:
    module, inputs = graph(InPlace(), torch.randn(3, 4))
    run = BranchingRun(module)
    add = next(n for n in floats(module) if n.target is torch.ops.aten.add.Tensor)
    (first,) = [n for n in floats(module) if n.name == "linear"]
    for at, values, kept in run.stops(inputs, [first, add, floats(module)[-1]], [first]):
        if at is not add:
            continue
        before = {n: v.clone() for n, v in values.items() if isinstance(v, Tensor)}
        stream = kept[first].clone()
        # The value that is put in is written into as well.
        results = [run.finish(at, values, {at: kept[first]}) for _ in range(2)]
        assert torch.equal(*results)
        assert torch.equal(results[0], full(module, inputs, add, stream))
        assert torch.equal(kept[first], stream)
        assert all(torch.equal(values[n], v) for n, v in before.items())
    assert torch.equal(values[at], module(*inputs))


@torch.no_grad()
def test_kept_values_are_those_of_their_time() -> None:
    """The run itself writes into the sum after it was kept."""
    module, inputs = graph(InPlace(), torch.randn(3, 4))
    add = next(n for n in floats(module) if n.target is torch.ops.aten.add.Tensor)
    last = floats(module)[-1]
    (then,) = [kept[add] for _, _, kept in BranchingRun(module).stops(inputs, [add], [add])]
    (later,) = [kept[add] for _, _, kept in BranchingRun(module).stops(inputs, [last], [add])]
    assert then.min() < 0
    assert torch.equal(then, later)


# What it costs


@torch.no_grad()
def test_nothing_before_the_stop_is_computed_again(
    llama: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    original = fx.Interpreter.run_node

    def counted(self: fx.Interpreter, n: fx.Node) -> Any:
        calls[n.name] += 1
        return original(self, n)

    monkeypatch.setattr(fx.Interpreter, "run_node", counted)
    run = BranchingRun(llama)
    first, second = floats(llama)[30], floats(llama)[70]
    for at, values, _ in run.stops([IDS], [first, second]):
        run.finish(at, values, {})
        run.finish(at, values, {})
    order = [n for n in llama.graph.nodes if n.op == "call_function"]
    a, b = order.index(first), order.index(second)
    expected = [1] * (a + 1) + [3] * (b - a) + [4] * (len(order) - b - 1)
    assert [calls[n.name] for n in order] == expected


@torch.no_grad()
def test_the_run_ends_at_its_last_stop(
    llama: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[fx.Node] = []
    original = fx.Interpreter.run_node
    monkeypatch.setattr(
        fx.Interpreter, "run_node", lambda self, n: seen.append(n) or original(self, n)
    )
    stop = floats(llama)[20]
    assert [at for at, _, _ in BranchingRun(llama).stops([IDS], [stop])] == [stop]
    assert seen[-1] is stop
