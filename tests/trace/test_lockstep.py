"""Batches in step: the values are those of a plain run, and no more of them are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

import fxprune
from fxprune.trace.lockstep import Lockstep, flatten, input_names, needed
from tests.llama import tiny_llama
from tests.zoo import BY_NAME

aten = torch.ops.aten
BATCHES = [torch.arange(rows * 7).view(rows, 7) % 90 for rows in (2, 4, 3)]


def plain(module: fx.GraphModule, inputs: list[Any]) -> dict[fx.Node, Any]:
    """Every value of one run."""
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs, enable_io_processing=False)
    return interpreter.env


@pytest.fixture(scope="module")
def llama() -> fxprune.Traced:
    return fxprune.trace(tiny_llama())


def products(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.target is aten.linear.default]


@pytest.mark.parametrize("through", [False, True])
@torch.no_grad()
def test_values_are_those_of_a_plain_run(llama: fxprune.Traced, through: bool) -> None:
    module = llama.graph_module
    inputs = [flatten(module, {"input_ids": ids}) for ids in BATCHES]
    expected = [plain(module, each) for each in inputs]
    stops = products(module)[3:12:2]
    lockstep = Lockstep(module, inputs, stops)
    for node in stops:
        for environment, there in zip(
            lockstep.advance(node, through=through), expected, strict=True
        ):
            assert (node in environment) == through
            for value in (*node.all_input_nodes, *([node] if through else [])):
                assert torch.equal(environment[value], there[value])
    # The iterator has gone on: what the node read and nobody reads later is freed.
    assert all((stops[-1].args[0] in values) != through for values in lockstep.values)


@torch.no_grad()
def test_more_is_alive_at_a_stop_and_what_is_late_is_not(llama: fxprune.Traced) -> None:
    module = llama.graph_module
    inputs = [flatten(module, {"input_ids": ids}) for ids in BATCHES]
    expected = [plain(module, each) for each in inputs]
    early, *others = products(module)
    stop = next(n for n in others if len(n.all_input_nodes[0].users) == 1)
    late, last = stop.all_input_nodes[0], others[-1]
    lockstep = Lockstep(module, inputs, [stop, last], {stop: [early]}, [late])
    for environment, there in zip(lockstep.advance(stop), expected, strict=True):
        assert torch.equal(environment[early], there[early])
        assert late not in environment
    for environment, there in zip(lockstep.advance(last, through=True), expected, strict=True):
        assert torch.equal(environment[last], there[last])
        assert environment.keys().isdisjoint({early, late})


@torch.no_grad()
def test_only_what_is_needed_later_is_alive(llama: fxprune.Traced) -> None:
    module = llama.graph_module
    first, second = products(module)[5], products(module)[9]
    lockstep = Lockstep(module, [flatten(module, {"input_ids": BATCHES[0]})], [first, second])
    for _ in lockstep.advance(first):
        pass
    order = needed(module.graph, [first, second])
    done, later = order[: order.index(first)], order[order.index(first) :]
    alive = {node for node in done if any(user in later for user in node.users)}
    assert set(next(lockstep.values)) == alive


def test_what_no_end_needs_is_not_computed(llama: fxprune.Traced) -> None:
    module = llama.graph_module
    *_, last, head = products(module)
    order = needed(module.graph, [last])
    assert order[-1] is last
    assert head not in order
    assert not any(n.target == "lm_head.weight" for n in order)


@torch.no_grad()
def test_a_weight_changed_at_a_stop_is_read_by_later_nodes() -> None:
    traced = fxprune.trace(tiny_llama())
    module = traced.graph_module
    first, last = products(module)[6], products(module)[-1]
    inputs = [flatten(module, {"input_ids": ids}) for ids in BATCHES]
    lockstep = Lockstep(module, inputs, [first, last])
    for _ in lockstep.advance(first):
        pass
    traced.tensors[str(first.args[1].target)].mul_(-2)
    changed = [plain(module, each)[last] for each in inputs]
    values = [environment[last] for environment in lockstep.advance(last, through=True)]
    for mine, theirs in zip(values, changed, strict=True):
        assert torch.equal(mine, theirs)


@torch.no_grad()
def test_a_value_changed_at_a_stop_is_read_by_later_nodes() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    twice = graph.call_function(aten.mul.Tensor, (x, 2))
    more = graph.call_function(aten.add.Tensor, (twice, 1))
    graph.output(more)
    lockstep = Lockstep(
        fx.GraphModule({}, graph), [[torch.ones(2)], [torch.zeros(2)]], [twice, more]
    )
    for environment in lockstep.advance(twice, through=True):
        environment[twice] = environment[twice] + 10
    results = [environment[more].tolist() for environment in lockstep.advance(more, through=True)]
    assert results == [[13, 13], [11, 11]]


@torch.no_grad()
def test_an_op_in_place_is_not_dropped() -> None:
    """Nothing reads the result of ``add_``, but its tensor is read afterwards."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    base = graph.call_function(aten.clone.default, (x,))
    part = graph.call_function(aten.slice.Tensor, (base, 0, 0, 1))
    graph.call_function(aten.add_.Tensor, (part, 5))
    result = graph.call_function(aten.mul.Tensor, (base, 2))
    after = graph.call_function(aten.mul_.Tensor, (base, 0))
    graph.output((result, after))
    order = needed(graph, [result])
    assert part in order
    assert after not in order
    lockstep = Lockstep(fx.GraphModule({}, graph), [[torch.ones(2)]], [result])
    results = [
        environment[result].tolist() for environment in lockstep.advance(result, through=True)
    ]
    assert results == [[12, 2]]


def test_inputs_by_name_come_in_the_graphs_order() -> None:
    entry = BY_NAME["t5"]
    args, kwargs = entry.example()
    module = fxprune.trace(entry.build(), args, kwargs).graph_module
    assert set(input_names(module)) == {"input_ids", "decoder_input_ids"}
    values = flatten(module, dict(reversed(kwargs.items())))
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    for name, value in zip(names, values, strict=True):
        assert value is kwargs[name]
