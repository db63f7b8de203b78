"""Legal sizes against what transformers accepts and against division by hand."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

import fxprune
from fxprune.errors import SelectionError, ServeError
from fxprune.groups.dependency import DependencyGraph
from fxprune.inspect.legality import Report, Row, check_plan, legality
from fxprune.plan import Plan
from tests.llama import tiny_llama
from tests.toys import ToyLM, toy_graph


@functools.cache
def llama() -> DependencyGraph:
    """10 query heads, 5 key/value heads of 4, hidden 40, 24 neurons, two layers."""
    sizes = {"hidden_size": 40, "num_attention_heads": 10, "num_key_value_heads": 5}
    return fxprune.discover(fxprune.trace(tiny_llama(**sizes, intermediate_size=24)))


def accepted(**changes: int) -> bool:
    sizes = {"hidden_size": 40, "num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 4}
    try:
        LlamaConfig(**{**sizes, **changes})
    except Exception:  # huggingface_hub's validators raise their own
        return False
    return True


def row(report: Report, kind: str) -> Row:
    return next(row for row in report.rows if row.kind == kind)


def test_stock_is_what_transformers_accepts() -> None:
    report = legality(llama())
    heads = [n for n in range(1, 6) if accepted(num_attention_heads=2 * n, num_key_value_heads=n)]
    assert row(report, "attention").kept["stock"] == tuple(heads) == (1, 2, 4, 5)
    queries = [n for n in (1, 2) if accepted(num_attention_heads=5 * n)]
    assert row(report, "query").kept["stock"] == tuple(queries)
    channels = [n for n in range(1, 41) if accepted(hidden_size=n)]
    assert row(report, "channel").kept["stock"] == tuple(channels) == (10, 20, 30, 40)
    assert row(report, "mlp").kept["stock"] == tuple(range(1, 25))
    # Queries and keys have a size of their own here, values another: a config has one for both.
    for each in report.rows:
        if each.kind == "head_dim":
            assert each.kept["stock"] == (each.size,)


def test_devices_and_multiples_by_hand() -> None:
    report = legality(llama(), tensor_parallel=(1, 2, 5), multiples=(8, 16))
    attention = row(report, "attention")
    assert attention.kept["tp=2"] == (2, 4)
    assert attention.kept["tp=5"] == (5,)
    assert attention.kept["tp=1"] == (1, 2, 3, 4, 5)
    # q and o are 8 long per head, k and v 4.
    assert attention.kept["x8"] == (2, 4)
    assert attention.kept["x16"] == (4,)
    # Five key/value heads do not divide by two, however many query heads each has.
    assert row(report, "query").kept["tp=2"] == ()
    assert row(report, "query").kept["tp=5"] == (1, 2)
    assert row(report, "mlp").kept["tp=2"] == tuple(range(2, 25, 2))
    assert row(report, "mlp").kept["x8"] == (8, 16, 24)
    assert row(report, "channel").kept["x16"] == (16, 32)
    assert row(report, "channel").kept["tp=2"] == tuple(range(1, 41))


def test_ratios_under_several_constraints() -> None:
    report = legality(llama())
    assert row(report, "attention").ratios("stock", "tp=2") == pytest.approx((0.2, 0.6))
    assert row(report, "mlp").ratios("x8") == pytest.approx((0, 1 / 3, 2 / 3))
    assert row(report, "mlp").ratios()[:2] == pytest.approx((0, 1 / 24))
    with pytest.raises(SelectionError, match="no constraint 'tp=3': take stock, tp=2"):
        row(report, "mlp").ratios("tp=3")


def test_without_a_head_dim_the_heads_are_fixed() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=24, n_head=4, vocab_size=50257))
    report = legality(fxprune.discover(fxprune.trace(model.eval())))
    assert row(report, "attention").kept["stock"] == (4,)
    assert row(report, "channel").kept["stock"] == (24,)
    assert row(report, "mlp").kept["stock"] == tuple(range(1, 97))


def test_what_an_engine_takes() -> None:
    report = legality(llama(), target="transformers")
    for each in report.rows:
        assert each.kept["transformers"] == each.kept["stock"]
    report = legality(llama(), target="transformers-remote")
    assert row(report, "attention").kept["transformers-remote"] == (1, 2, 3, 4, 5)
    for each in report.rows:
        if each.kind == "head_dim":
            assert each.kept["transformers-remote"] == (each.size,)


def test_any_graph() -> None:
    graph: Any = toy_graph(ToyLM(layers=2, kv=4, repeat=2, head=4))
    report = legality(graph, tensor_parallel=(2,), multiples=(16,))
    assert {(r.kind, r.size, r.groups): dict(r.kept) for r in report.rows} == {
        ("attention", 4, 2): {"tp=2": (2, 4), "x16": (4,)},
        ("query", 2, 2): {"tp=2": (1, 2), "x16": (1, 2)},
        ("mlp", 10, 2): {"tp=2": (2, 4, 6, 8, 10), "x16": ()},
        ("channel", 8, 1): {"tp=2": tuple(range(1, 9)), "x16": ()},
    }
    with pytest.raises(SelectionError, match="at least 1"):
        legality(graph, multiples=(0,))


def test_the_table() -> None:
    console = Console(width=200, record=True)
    with console.capture() as printed:
        console.print(legality(llama()).table())
    text = printed.get()
    mlp = next(line for line in text.splitlines() if " mlp " in line)
    cells = [cell.strip() for cell in mlp.split("│")[1:-1]]
    assert cells[:6] == ["mlp", "2", "24", "any", "multiples of 2", "multiples of 4"]
    assert cells[-2:] == ["none", "none"]


# Plans


def kept(graph: DependencyGraph, **of_kind: int) -> dict[str, range]:
    return {g.name: range(of_kind[g.kind]) for g in graph.groups if g.kind in of_kind}


def test_plans_that_stay_stock() -> None:
    graph = fxprune.discover(replace(llama().traced, cache={}))
    assert check_plan(graph, Plan.of(graph, {})) == []
    assert check_plan(graph, Plan.of(graph, kept(graph, mlp=17, attention=4))) == []
    assert check_plan(graph, Plan.of(graph, kept(graph, channel=16, attention=4))) == []
    # One trial each: the limits, a trial for every kind, were not asked for.
    assert not [key for key in graph.traced.cache if key.startswith("target of")]


def test_plans_that_do_not() -> None:
    graph = llama()
    names = [g.name for g in graph.groups if g.kind == "mlp"]
    found = check_plan(graph, Plan.of(graph, {names[1]: range(7)}))
    assert found == [
        "transformers has one number of mlp units of 24: "
        f"{names[0]} keeps 24 and {names[1]} keeps 7"
    ]
    assert check_plan(graph, Plan.of(graph, {names[1]: range(7)}), "transformers-remote") == []
    (found,) = check_plan(graph, Plan.of(graph, kept(graph, attention=3)))
    assert found == "6 query heads do not divide hidden_size 40, which configs insist on"
    (found,) = check_plan(graph, Plan.of(graph, kept(graph, channel=16)))
    assert found.startswith("10 query heads do not divide hidden_size 16")
    gained = Plan.of(graph, {}, biases=["model.layers.0.mlp.down_proj.bias"])
    for engine in ("transformers", "transformers-remote"):
        (found,) = check_plan(graph, gained, engine)
        assert found.endswith("no place for the new bias model.layers.0.mlp.down_proj.bias")
    with pytest.raises(ServeError, match="'transformer'; did you mean transformers"):
        check_plan(graph, Plan.of(graph, {}), "transformer")


@pytest.mark.parametrize("engine", ["transformers", "transformers-remote"])
def test_plans_that_leave_a_branch_out(engine: str) -> None:
    traced = llama().traced
    graph = fxprune.discover(fxprune.bypass(traced, ["model.layers.1:block"]))
    assert check_plan(graph, Plan.of(graph, kept(graph, mlp=17)), engine) == []
    graph = fxprune.discover(fxprune.bypass(traced, ["model.layers.1:mlp"]))
    found = check_plan(graph, Plan.of(graph, {}), engine)
    assert f"{engine} cannot leave out model.layers.1:mlp: it can leave out block" in found


def test_a_model_without_a_config() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = fxprune.discover(fxprune.trace(model, (torch.randn(2, 3),)))
    name = graph.groups[0].name
    assert "stock" not in legality(graph).rows[0].kept
    found = check_plan(graph, Plan.of(graph, {name: range(3)}))
    assert found == ["Sequential is not a class of transformers, as transformers loads"]
