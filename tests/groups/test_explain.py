"""Why tensors are coupled: paths and rules that are derived by hand."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxprune
from fxprune.errors import GroupError
from fxprune.inspect.explain import DependencyPath
from tests.llama import tiny_llama


class Gated(nn.Module):
    """A gated MLP alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, 10, bias=False), nn.Linear(6, 10)
        self.down = nn.Linear(10, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(self.gate(x))
        up = self.up(x)
        return self.down(gate * up)


class Square(nn.Module):
    """A square matrix beside a skip connection: both of its axes are the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix = nn.Linear(5, 12), nn.Linear(12, 12, bias=False)
        self.leave = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.leave(x + self.mix(x))


class Clash(nn.Module):
    """Units run into one another: the axis is frozen with a reason."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).softmax(-1))


def graph_of(model: nn.Module, features: int) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model, (torch.randn(3, features),)))


@functools.cache
def llama() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama(num_hidden_layers=4)))


def walked(path: DependencyPath) -> list[tuple[str, str, str]]:
    assert path.steps is not None
    return [(step.way, step.target, " ".join(step.rules)) for step in path.steps]


def test_gated_mlp_by_hand() -> None:
    (group,) = graph_of(Gated(), 6).groups
    (why,) = graph_of(Gated(), 6).explain(group.name).couplings
    assert (why.group, why.kind, why.size, why.sites) == (group.name, "mlp", 10, 4)
    assert (why.reason, why.start) == (None, "gate.weight[0]")
    paths = {path.site: walked(path) for path in why.paths}
    assert list(paths) == [why.start, "up.weight[0]", "up.bias[0]", "down.weight[1]"]
    # silu is fed by the gate alone (R1), which feeds it alone (R2). The product is fed by both
    # operands (no R1), and each feeds it alone (R2). Weights come along under R3.
    product = [
        ("feeds", "linear", "R3"),
        ("feeds", "silu", "R1 R2 R3"),
        ("feeds", "mul", "R2 R3"),
    ]
    back = ("is fed by", "linear_1", "R2 R3")
    assert paths["gate.weight[0]"] == []
    assert paths["up.weight[0]"] == [*product, back, ("is fed by", "up.weight", "R3")]
    assert paths["up.bias[0]"] == [*product, back, ("is fed by", "up.bias", "R3")]
    assert paths["down.weight[1]"] == [*product, ("meets", "down.weight", "R3")]


@pytest.mark.usefixtures("with_lines")
def test_steps_name_op_module_and_line() -> None:
    (group,) = graph_of(Gated(), 6).groups
    (why,) = graph_of(Gated(), 6).explain(group.name, to="down").couplings
    (path,) = why.paths
    assert path.steps is not None
    assert [step.op for step in path.steps] == ["linear", "silu", "mul", "linear_2"]
    assert [step.module for step in path.steps] == ["gate", "", "", "down"]
    gate, silu, mul, _ = (step.location for step in path.steps)
    assert gate == silu
    assert silu.startswith("test_explain.py:")
    assert mul != silu
    assert path.steps[0].source == "gate.weight"


def test_every_step_is_an_edge_with_these_rules() -> None:
    graph = llama()
    for group in graph.groups:
        (why,) = graph.explain(group.name).couplings
        assert {path.site for path in why.paths} == {str(site) for site in group.sites}
        for path in why.paths:
            assert path.steps is not None
            places = [why.start.rpartition("[")[0], *(step.target for step in path.steps)]
            assert [step.source for step in path.steps] == places[:-1]
            assert places[-1] == path.tensor
            assert all(step.rules for step in path.steps)


def test_grouped_queries() -> None:
    (why,) = llama().explain("model.layers.2.self_attn:heads").couplings
    paths = {path.tensor.split(".")[-2]: path.steps or () for path in why.paths}
    assert list(paths) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    (joint,) = {step.op for step in paths["k_proj"]} & {
        step.op for step in paths["o_proj"] if "attention" in step.op
    }
    assert joint.startswith("scaled_dot_product_attention")
    assert paths["o_proj"][-1].way == "meets"


def test_a_tensor_is_explained_from_there() -> None:
    graph = llama()
    found = graph.explain("model.layers.0.mlp.down_proj")
    groups = [why.group for why in found.couplings]
    assert groups == ["residual:channels", "model.layers.0.mlp:units"]
    assert {why.start for why in found.couplings} == {
        "model.layers.0.mlp.down_proj.weight[0]",
        "model.layers.0.mlp.down_proj.weight[1]",
    }
    narrow = graph.explain("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj")
    assert [[path.axis for path in why.paths] for why in narrow.couplings] == [[1], [0]]


def test_frozen_groups_say_why() -> None:
    found = llama().explain("lm_head")
    frozen = [why for why in found.couplings if why.reason is not None]
    assert frozen
    assert "graph output" in str(found)


def test_both_axes_of_a_square_matrix() -> None:
    graph = graph_of(Square(), 5)
    (why,) = graph.explain(next(g.name for g in graph.groups if g.size == 12)).couplings
    paths = {path.site: walked(path) for path in why.paths}
    # There, out through the sum, and back in where it is contracted with the stream.
    assert paths["mix.weight[1]"][: len(paths["mix.weight[0]"])] == paths["mix.weight[0]"]
    rest = [target for _, target, _ in paths["mix.weight[1]"][len(paths["mix.weight[0]"]) :]]
    assert sorted(rest[:-1]) == ["add", "linear", "linear_1"]
    assert rest[-1] == "mix.weight"
    (own,) = graph.explain("mix", to="mix").couplings
    assert [len(path.steps or ()) for path in own.paths] == [0, 4]


def test_what_no_rule_reaches_is_said() -> None:
    path = DependencyPath("a.weight", 0, None)
    graph = graph_of(Clash(), 6)
    found = graph.explain("a")
    (why,) = (c for c in found.couplings if c.size == 10)
    assert "softmax" in (why.reason or "")
    cut = dataclasses.replace(why, paths=(path,))
    assert "no rule leads there" in str(dataclasses.replace(found, couplings=(cut,)))


@pytest.mark.usefixtures("with_lines")
def test_one_mlp_fits_a_screen() -> None:
    text = str(llama.__wrapped__().explain("model.layers.0.mlp:units"))
    lines = text.splitlines()
    assert len(lines) < 16
    assert "model.layers.0.mlp.act_fn  activations.py:" in text
    assert lines[-1].startswith("-> feeds; <- is fed by; == is contracted with; R1 ")


def test_the_residual_stream_is_folded() -> None:
    graph = llama()
    (why,) = graph.explain("residual:channels").couplings
    text = str(graph.explain("residual:channels"))
    assert len(why.paths) == 4 * 9 + 3  # both embeddings, the last norm
    assert len(text.splitlines()) < 66
    assert "and 3 more: model.layers.*.mlp.down_proj.weight[0], " in text


def test_layers_passed_alike_are_folded() -> None:
    found = llama().explain("model.embed_tokens", "model.layers.3.mlp.down_proj")
    (why,) = found.couplings
    (path,) = why.paths
    assert len(path.steps or ()) > 8
    assert "likewise through layers 1-2" in str(found)
    assert len(str(found).splitlines()) < 14


def test_plain_values() -> None:
    found = llama().explain("model.layers.0.mlp:units")
    content = json.loads(json.dumps(dataclasses.asdict(found)))
    assert content["couplings"][0]["paths"][1]["steps"][0]["rules"] == ["R3"]


def test_unknown_names() -> None:
    with pytest.raises(GroupError, match=r"did you mean .*model\.layers\.0\.mlp\.down_proj"):
        llama().explain("model.layers.0.mlp.dwn_proj")
    with pytest.raises(GroupError, match=r"did you mean model\.layers\.1\.mlp:units"):
        llama().explain("model.layers.1.mlp:unit")
    with pytest.raises(GroupError, match="no group, tensor or module ''"):
        llama().explain("")
    with pytest.raises(GroupError, match="they are not coupled"):
        llama().explain("model.layers.0.mlp:units", "model.layers.1.mlp.down_proj")
    with pytest.raises(GroupError, match="no group, tensor or module 'nothing'"):
        llama().explain("model.layers.0.mlp:units", "nothing")
