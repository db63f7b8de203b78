"""Only caches and hidden states of a ModelOutput may shrink; anything else keeps its sizes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import CLIPConfig, CLIPModel, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPast
from transformers.utils import ModelOutput

import fxprune
from fxprune.groups.outputs import intermediate


@dataclass
class Stages:
    early: Tensor
    late: Tensor


class Named(NamedTuple):
    early: Tensor
    late: Tensor


class Own(dict[str, Tensor]):
    """A dict of a class of the user's."""


pytree.register_dataclass(Stages)
pytree.register_pytree_node(
    Own, lambda d: (list(d.values()), list(d)), lambda v, keys: Own(zip(keys, v, strict=True))
)


class Backbone(nn.Module):
    """Its inner stages are returned and used; each has a width of its own."""

    def __init__(self, give: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 10), nn.Linear(10, 6)
        self.give = give

    def forward(self, x: Tensor) -> Any:
        early = self.a(x).relu()
        late = self.b(early).relu()
        return self.give(early, late, self.c(late))


@dataclass
class OwnOutput(ModelOutput):
    loss: Tensor | None = None
    result: Tensor | None = None
    pooler_output: Tensor | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None


PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "dict": lambda a, b, c: {"c": c, "early": a, "late": b},
    "dict with names of transformers": lambda a, b, c: {
        "last_hidden_state": c,
        "hidden_states": (a, b),
        "past_key_values": a,
    },
    "ordered dict": lambda a, b, c: OrderedDict(c=c, early=a, late=b),
    "list": lambda a, b, c: [c, a, b],
    "tuple": lambda a, b, c: (c, a, b),
    "nested": lambda a, b, c: {"c": c, "inner": {"stages": [a, (b,)]}},
    "dataclass": lambda a, b, c: {"c": c, "inner": Stages(a, b)},
    "named tuple": lambda a, b, c: (c, Named(a, b)),
    "own class": lambda a, b, c: Own(c=c, early=a, late=b),
    "first entry": lambda a, b, c: BackboneOutput(feature_maps=(c, a, b)),
    "another entry": lambda a, b, c: OwnOutput(result=c, pooler_output=(a, b)),
    "beside a model output": lambda a, b, c: (BaseModelOutputWithPast(last_hidden_state=c), a, b),
}


def _sizes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(output)]


@pytest.mark.parametrize("give", PLAIN.values(), ids=PLAIN)
def test_an_output_of_the_users_keeps_its_sizes(
    give: Callable[[Tensor, Tensor, Tensor], Any],
) -> None:
    model, x = Backbone(give), torch.randn(3, 4)
    graph = fxprune.discover(fxprune.trace(model, (x,)))
    assert not graph.groups
    assert not graph.inferred.intermediate
    assert _sizes(graph.traced.graph_module(x)) == _sizes(model(x))


@pytest.mark.parametrize(
    "give",
    [
        lambda a, b, c: BaseModelOutputWithPast(last_hidden_state=c, hidden_states=(a, b)),
        lambda a, b, c: OwnOutput(result=c, decoder_hidden_states=(a, b)),
        lambda a, b, c: BaseModelOutputWithPast(last_hidden_state=c, past_key_values=[a, b]),
    ],
)
def test_hidden_states_and_caches_of_a_model_output_shrink(
    give: Callable[[Tensor, Tensor, Tensor], Any],
) -> None:
    model, x = Backbone(give), torch.randn(3, 4)
    graph = fxprune.discover(fxprune.trace(model, (x,)))
    assert [group.size for group in graph.groups] == [12, 10]
    plan = fxprune.Plan.of(graph, {group.name: range(5) for group in graph.groups})
    small = fxprune.rewrite(graph.traced, plan)
    assert _sizes(small(x)) == [(3, 6), (3, 5), (3, 5)]
    fxprune.verify(graph.traced, small, plan)


def test_a_state_that_nothing_inside_reads_is_a_result() -> None:
    def give(a: Tensor, b: Tensor, c: Tensor) -> Any:
        return BaseModelOutputWithPast(last_hidden_state=b, hidden_states=(a, c))

    graph = fxprune.discover(fxprune.trace(Backbone(give), (torch.randn(3, 4),)))
    assert [group.size for group in graph.groups] == [12]  # b is the first entry, c is used nowhere


def test_outputs_inside_an_output() -> None:
    """CLIP's embeddings and pooled outputs are results; the encoders' states need not be."""
    tiny = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tiny, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**tiny, "image_size": 16, "patch_size": 8},
        projection_dim=6,
    )
    model = CLIPModel(config).eval()
    example = {"input_ids": torch.randint(3, 40, (2, 7)), "pixel_values": torch.rand(2, 3, 16, 16)}
    traced = fxprune.trace(model, kwargs=example)
    leaves = pytree.tree_leaves(traced.graph_module.graph.output_node().args[0])
    before = model(**example)
    states = [before.text_model_output[0], before.vision_model_output[0]]
    free = intermediate(traced.graph_module.graph)
    assert [tuple(leaves[place].meta["val"].shape[1:]) for place in sorted(free)] == [
        tuple(state.shape[1:]) for state in states
    ]
    graph = fxprune.discover(traced)
    assert {group.kind for group in graph.groups} >= {"mlp", "attention"}


def test_an_encoders_states_shrink_with_its_stream() -> None:
    config = T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, use_cache=False
    )
    graph = fxprune.discover(fxprune.trace(T5ForConditionalGeneration(config).eval()))
    kinds = {group.kind for group in graph.groups}
    assert "channel" in kinds
    assert graph.inferred.intermediate
