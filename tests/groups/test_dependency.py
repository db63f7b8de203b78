"""Groups, triggers and the paper's rules."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import GroupError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.kinds import layer_of
from tests.llama import tiny_llama


@functools.cache
def llama() -> DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny_llama()))


def mlp_input(graph: DependencyGraph) -> tuple[str, str]:
    """The neuron set that feeds down_proj of layer 0: the gated product."""
    name = "model.layers.0.mlp:units"
    (node,) = (
        n
        for n in graph.network
        if n[1] == name and graph.network.out_degree(n) and n[0].startswith("mul")
    )
    return node


def test_r1_and_r2_alone_give_the_papers_group() -> None:
    graph = llama()
    assert graph.sites_of(graph.trigger(mlp_input(graph), ("R1", "R2"))) == {
        "model.layers.0.mlp.gate_proj.weight[0]",
        "model.layers.0.mlp.up_proj.weight[0]",
        "model.layers.0.mlp.down_proj.weight[1]",
    }


def test_without_rules_only_the_triggers_own_weights_are_reached() -> None:
    graph = llama()
    assert graph.sites_of(graph.trigger(mlp_input(graph), ())) == {
        "model.layers.0.mlp.down_proj.weight[1]"
    }


def test_r1_goes_down_the_stream_and_r2_up() -> None:
    graph = llama()
    product = mlp_input(graph)
    (activation,) = (n for n in graph.network.predecessors(product) if n[0].startswith("silu"))
    (gate,) = graph.network.predecessors(activation)
    # The gate alone feeds the activation, but the product is fed by the up projection too.
    down = graph.trigger(gate, ("R1",))
    assert activation in down
    assert product not in down
    assert graph.trigger(gate, ("R2",)).isdisjoint({activation, product})
    assert {activation, gate} < graph.trigger(product, ("R2",))


def test_the_residual_stream_needs_r3() -> None:
    graph = llama()
    (channels,) = (g for g in graph.groups if g.kind == "channel")
    every = {str(site) for site in channels.sites}
    assert graph.sites_of(graph.trigger(channels)) == every
    assert graph.sites_of(graph.trigger(channels, ("R1", "R2"))) < every


def test_names_kinds_and_layers() -> None:
    graph = llama()
    heads = graph["model.layers.1.self_attn:heads"]
    assert (heads.kind, heads.size, heads.layer) == ("attention", 3, ("model.layers", 1))
    assert graph["model.layers.1.self_attn:queries"].kind == "query"
    assert graph["model.layers.0.mlp:units"].kind == "mlp"
    assert graph["model.layers.0.mlp:units"].parameters == (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    )
    assert "attention" in repr(graph)


@pytest.mark.usefixtures("with_lines")
def test_reasons_name_the_op_and_the_line() -> None:
    reasons = {g.name: g.reason or "" for g in llama.__wrapped__().frozen}
    assert any("looked up by index at modeling_llama.py:" in r for r in reasons.values())
    assert any("graph output (aten.linear) at modeling_llama.py:" in r for r in reasons.values())


class SoftmaxOver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 10)
        self.b = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).softmax(-1))


@pytest.mark.usefixtures("with_lines")
def test_a_softmax_freezes_with_its_place() -> None:
    graph = fxprune.discover(fxprune.trace(SoftmaxOver(), (torch.randn(3, 6),)))
    assert not graph.groups
    reasons = [g.reason or "" for g in graph.frozen if g.size == 10]
    assert len(reasons) == 1
    assert reasons[0].startswith("softmax over this axis")
    assert "test_dependency.py:" in reasons[0]


def test_unknown_names_are_refused_with_close_ones() -> None:
    with pytest.raises(GroupError, match=r"did you mean .*model\.layers\.0\.mlp:units"):
        llama()["model.layers.0.mlp:unit"]
    with pytest.raises(GroupError, match="R4"):
        llama().trigger("model.layers.0.mlp:units", ("R4",))
    with pytest.raises(GroupError, match="no tensor 'nowhere'"):
        llama().neurons("nowhere", 0)
    with pytest.raises(GroupError, match="no neuron set"):
        llama().trigger(("nothing", "at all"))


def test_discovery_is_kept_with_the_traced_model() -> None:
    assert fxprune.discover(llama().traced) is llama()


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        ("model.layers.3.mlp", ("model.layers", 3)),
        ("transformer.h.11.attn", ("transformer.h", 11)),
        ("encoder.block.2.layer.1.DenseReluDense", ("encoder.block", 2)),
        ("layers.0", ("layers", 0)),
        ("lm_head", None),
    ],
)
def test_layers_are_read_off_names(place: str, layer: tuple[str, int] | None) -> None:
    assert layer_of(place) == layer


def test_a_piece_of_a_weight_is_no_activation() -> None:
    """Cross attention splits its fused projection; what reads it is still a stream of channels."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 24), nn.Linear(24, 3)
            self.transformer = nn.Transformer(24, 4, 1, 1, 38, batch_first=True)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.head(self.transformer(self.stem(x), self.stem(y)))

    graph = fxprune.discover(
        fxprune.trace(Pairs().eval(), (torch.rand(2, 7, 5), torch.rand(2, 6, 5)))
    )
    (stream,) = (g for g in graph.groups if "stem.weight" in g.parameters)
    assert (stream.kind, stream.size) == ("channel", 24)
    assert sorted(g.size for g in graph.groups if g.kind == "attention") == [4, 4, 4]
