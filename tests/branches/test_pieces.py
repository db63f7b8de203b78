"""Pieces of a graph: where it is cut, and that they compute what the graph does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from transformers import LlamaForCausalLM

import fxprune
from fxprune.branches.pieces import Pieces, pieces_of
from fxprune.trace.lockstep import flatten, input_names
from fxprune.trace.traced import Traced
from tests import zoo
from tests.llama import tiny_llama
from tests.vision import families

IDS = torch.arange(24).reshape(2, 12) % 90
FAMILIES = [
    ("llama", "sdpa"), ("gpt2", "eager"), ("bert", "eager"), ("t5", "eager"), ("mixtral", "eager"),
    ("bloom", "eager"), ("vit", "eager"), ("resnet", "eager"), ("perceptron", "eager"),
    ("chatglm_block", "eager"),
]  # fmt: skip


def traced(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> Traced:
    return fxprune.trace(model.eval(), args, kwargs)


@torch.no_grad()
def run(pieces: Pieces, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """All pieces one after the other, each given what the others gave and nothing else."""
    module = pieces.traced.graph_module
    names = input_names(module)
    leaves = flatten(module, {**dict(zip(names, inputs, strict=False)), **named})
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip(nodes, leaves, strict=True))
    given: Any = None
    for piece in pieces:
        ready = [values[node] for node in piece.reads]
        given = piece.module(*(x.clone() if isinstance(x, Tensor) else x for x in ready))
        values.update(zip(piece.gives, given, strict=False))
    return pieces.output(given)


def same(some: Any, others: Any) -> bool:
    pairs = zip(pytree.tree_leaves(some), pytree.tree_leaves(others), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def names(pieces: Pieces) -> list[str]:
    return [piece.name for piece in pieces]


def gives(pieces: Pieces) -> list[int]:
    """How many tensors each piece gives."""
    return [sum(isinstance(node.meta["val"], Tensor) for node in piece.gives) for piece in pieces]


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_the_union_is_the_graph(family: str, attention: str) -> None:
    found = zoo.traced(family, attention)
    pieces = pieces_of(found)
    assert len(pieces) > 1
    for size in (zoo.EXAMPLE, zoo.OTHER):
        args, kwargs = zoo.BY_NAME[family].example(*size)
        with torch.no_grad():
            expected = found.graph_module(*args, **kwargs)
        assert same(run(pieces, args, kwargs), expected)
    read = {name for piece in pieces for name in piece.tensors}
    assert read == set(found.tensors)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "attention"), sorted({*zoo.CASES} - {*FAMILIES}))
def test_the_union_is_the_graph_everywhere(family: str, attention: str) -> None:
    test_the_union_is_the_graph(family, attention)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*takes only these sizes:fxprune.FxpruneWarning")
@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_pictures(family: families.Family) -> None:
    """Branches that split and join, skips from one end to the other, heads at several scales."""
    found = traced(family.make(), family.pictures())
    pictures = family.pictures(3)
    with torch.no_grad():
        assert same(run(pieces_of(found), (pictures,), {}), found.graph_module(pictures))


def test_embedding_blocks_and_head() -> None:
    pieces = pieces_of(zoo.traced("llama", "sdpa"))
    assert names(pieces) == [
        "before model.layers.0", "model.layers.0", "model.layers.1", "after model.layers.1",
    ]  # fmt: skip
    assert gives(pieces) == [1, 1, 1, 0]
    assert pieces[0].tensors == ("model.embed_tokens.weight",)
    head = {"model.norm.weight", "lm_head.weight"}
    assert set(pieces[3].tensors) == head
    for number in range(2):
        own = {n for n in pieces[number + 1].tensors if not n.startswith(f"model.layers.{number}.")}
        assert own == {"model.rotary_emb.inv_freq"}, "rotary embeddings are computed again"
    assert "LlamaForCausalLM in 4 pieces" in str(pieces)


def test_what_many_blocks_read_is_kept_if_it_depends_on_weights() -> None:
    pieces = pieces_of(zoo.traced("t5", "eager"))
    # The position bias of the first block of either stack, and what the encoder gives.
    assert gives(pieces) == [1, 2, 1, 2, 2, 1, 0]
    encoded = pieces[3].gives[0]
    assert pieces.last[encoded] == 6, "the model gives it, too"
    assert [encoded in piece.reads for piece in pieces] == [False] * 4 + [True] * 3


def test_tied_weights_are_in_both_pieces() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    pieces = pieces_of(traced(model, input_ids=IDS))
    (name,) = set(pieces[0].tensors)
    assert name in pieces[3].tensors
    assert same(run(pieces, (), {"input_ids": IDS}), pieces.traced.graph_module(input_ids=IDS))


def test_without_weights() -> None:
    with torch.device("meta"):
        blank = LlamaForCausalLM(tiny_llama().config).eval()
    assert names(pieces_of(traced(blank, input_ids=IDS.to("meta")))) == names(
        pieces_of(traced(tiny_llama(), input_ids=IDS))
    )


def test_without_a_record_of_modules_it_is_cut_where_one_tensor_crosses() -> None:
    inner = traced(tiny_llama(), input_ids=IDS)
    plain = fx.GraphModule(inner.graph_module, inner.graph_module.graph)
    found = fxprune.trace(plain, kwargs={"input_ids": IDS})
    for node in found.graph_module.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    pieces = pieces_of(found)
    assert gives(pieces) == [1] * (len(pieces) - 1) + [0]
    assert len(pieces) == 7, "embedding, attention and MLP of two layers, norm, head"
    with torch.no_grad():
        assert same(run(pieces, (), {"input_ids": IDS}), found.graph_module(input_ids=IDS))


class Crossed(nn.Module):
    """Two streams that do not meet before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x).relu()) * x


@pytest.mark.parametrize(
    ("make", "said"), [(Crossed, "Crossed in 2"), (lambda: nn.Linear(6, 6), "Linear is one")]
)
def test_where_two_tensors_cross_there_is_no_cut(make: Callable[[], nn.Module], said: str) -> None:
    pieces = pieces_of(traced(make(), torch.ones(2, 6)))
    assert str(pieces).startswith(f"{said} piece")
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert same(run(pieces, (x,), {}), pieces.traced.graph_module(x))


class Adds(nn.Module):
    """Blocks that add to the stream in place."""

    def __init__(self, *, late: bool) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.layers = nn.ModuleList(Adding() for _ in range(3))
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        start = x[:, :2]
        for layer in self.layers:
            x = layer(x)
        return x[:, 2:4] * start if self.late else x


class Adding(nn.Module):
    """Adds to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.down(self.up(x).relu_()))


@pytest.mark.parametrize("late", [False, True])
def test_in_place(late: bool) -> None:
    """What is written into crosses a cut only where later reads go through what the write gives."""
    found = traced(Adds(late=late), torch.randn(2, 6))
    pieces = pieces_of(found)
    # Read late, the part of the first value is what all blocks have made of its memory.
    assert (len(pieces) == 1) == late, str(pieces)
    x = torch.randn(4, 6)
    with torch.no_grad():
        assert same(run(pieces, (x,), {}), found.graph_module(x))


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layers(x) * self.calls


def test_a_graph_that_writes_into_buffers_is_one_piece() -> None:
    pieces = pieces_of(traced(Counts(), torch.randn(2, 6)))
    assert str(pieces) == "Counts is one piece: it writes into its inputs or buffers"
