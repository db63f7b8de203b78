"""Scores of a model that runs piece by piece: those of the model in memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import fxprune
from fxprune.branches import pieces_of
from fxprune.errors import CalibrationError, CheckpointError, CriterionError
from fxprune.groups.consumers import consumers
from fxprune.groups.dependency import DependencyGraph
from fxprune.importance import (
    FLAP,
    OBS,
    ActivationNorm,
    Criterion,
    Magnitude,
    PeakToPeak,
    Random,
    Taylor,
    WandaSP,
    by_name,
    estimate,
)
from tests import zoo
from tests.llama import tiny_llama
from tests.pieces import Counted

IDS = torch.randint(90, (6, 13), generator=torch.Generator().manual_seed(3))
FORWARD = (WandaSP(), FLAP(), ActivationNorm(p=1), PeakToPeak(), Magnitude(), Random(3))
GRADIENTS = (Taylor(), Taylor(order=2), Taylor(order="mixed"), Taylor(reduce="vector"), OBS())
USUAL = ("mlp", "attention")
LAYERS = 3


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = tiny_llama(num_hidden_layers=LAYERS, tie_word_embeddings=True)
    zoo.disturb(model)
    return model


@pytest.fixture(scope="module")
def graph(model: LlamaForCausalLM) -> DependencyGraph:
    mask = torch.ones_like(IDS[:2])
    inputs = {"input_ids": IDS[:2], "attention_mask": mask}
    return fxprune.discover(fxprune.trace(model, kwargs=inputs))


def compare(
    model: nn.Module,
    graph: DependencyGraph,
    criteria: tuple[Criterion, ...],
    data: Any,
    *,
    exact: bool = False,
    source: Any = None,
    twin: DependencyGraph | None = None,
    **options: Any,
) -> None:
    """Compare the scores in memory with those of a run in pieces."""
    expected = estimate(model, graph, criteria, data, **options)
    found = estimate(
        model if twin is None else twin.traced.module,
        graph if twin is None else twin,
        criteria,
        data,
        stream=source or Counted(),
        **options,
    )
    for one, other in zip(expected, found, strict=True):
        assert list(one) == list(other)
        assert len(one) > 0
        assert (one.criterion, one.ranking) == (other.criterion, other.ranking)
        for name, scores in one.items():
            if exact:
                assert torch.equal(scores, other[name]), (one.criterion, name)
            else:
                error = (scores - other[name]).abs().max() / scores.abs().max()
                assert error < 1e-5, (one.criterion, name, error)


@pytest.mark.parametrize("criterion", FORWARD, ids=repr)
def test_forward_criteria_are_bit_equal(
    model: LlamaForCausalLM, graph: DependencyGraph, criterion: Criterion
) -> None:
    compare(model, graph, (criterion,), IDS, exact=True, batch_size=4, kinds=USUAL)


@pytest.mark.parametrize("size", [1, 4, None])
@pytest.mark.parametrize("criterion", GRADIENTS, ids=repr)
def test_gradient_criteria(
    model: LlamaForCausalLM, graph: DependencyGraph, criterion: Criterion, size: int | None
) -> None:
    compare(model, graph, (criterion,), IDS, batch_size=size, kinds=USUAL)


def test_all_at_once(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    compare(model, graph, (*FORWARD, *GRADIENTS), IDS, batch_size=2, kinds=USUAL)
    compare(model, graph, (*FORWARD, Taylor()), IDS, batch_size=4, kinds=USUAL)


def test_groups_of_all_pieces_and_tied_weights(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    """The embedding is read by the first piece and by the last, which add up its gradient."""
    kinds = ("channel", "head_dim", "query", "mlp")
    compare(model, graph, (Taylor(), Magnitude()), IDS, batch_size=4, kinds=kinds)
    compare(model, graph, (Taylor(order="mixed"), Taylor(order=2)), IDS, kinds=kinds)
    compare(model, graph, (WandaSP(),), IDS, exact=True, kinds=("channel",))


def test_padding_and_batches_without_labels(
    model: LlamaForCausalLM, graph: DependencyGraph
) -> None:
    mask = torch.ones_like(IDS)
    mask[1, 9:] = mask[4, 5:] = 0
    labels = IDS.clone()
    labels[2] = labels[3] = -100  # seen, and without a loss
    data = {"input_ids": IDS, "attention_mask": mask, "labels": labels}
    criteria = (WandaSP(), Taylor(), OBS())
    compare(model, graph, criteria, data, batch_size=2, kinds=USUAL)
    compare(model, graph, (Taylor(order=2), FLAP()), data, kinds=USUAL)
    compare(model, graph, (FLAP(),), data, exact=True, batch_size=2, kinds=USUAL)


@pytest.mark.parametrize("memory", [None, 4000])
def test_from_a_sharded_folder_and_a_twin_without_weights(
    model: LlamaForCausalLM, graph: DependencyGraph, tmp_path: Path, memory: int | None
) -> None:
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.device("meta"):
        blank = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).eval()
    mask = torch.ones_like(IDS[:2])
    inputs = {"input_ids": IDS[:2].to("meta"), "attention_mask": mask.to("meta")}
    twin = fxprune.discover(fxprune.trace(blank, kwargs=inputs))
    source = fxprune.Weights(tmp_path, memory=memory)
    options = {"source": source, "twin": twin, "batch_size": 2, "kinds": USUAL}
    compare(model, graph, (WandaSP(), PeakToPeak()), IDS, exact=True, **options)
    compare(model, graph, (Taylor(), OBS()), IDS, **options)
    compare(model, graph, (Taylor(order=2),), IDS, **options)  # a row alone, which meta can't try
    assert all(tensor.is_meta for tensor in blank.parameters())


CASES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "gpt2": ({}, ("taylor", "obs", "flap"), USUAL),
    "mixtral": ({}, ("taylor", "obs", "wanda-sp"), USUAL),
    "bloom": ({}, ("taylor", "wanda-sp"), USUAL),
    "bert": ("tokens", ("taylor2", "obs"), USUAL),
    "t5": ("pairs", ("taylor", "wanda-sp"), ("mlp", "attention", "channel")),
    "vit": ("classes", ("taylor-mixed", "obs"), USUAL),
    "resnet": ("classes", ("taylor", "taylor2"), ("channel", "mlp")),
    "perceptron": ("classes", ("taylor", "obs"), ("mlp",)),
}


@pytest.mark.parametrize("family", CASES)
def test_families(family: str) -> None:
    kind, names, kinds = CASES[family]
    entry = zoo.BY_NAME[family]
    traced = zoo.traced(family, entry.backends[-1])
    graph = fxprune.discover(traced)
    args, kwargs = entry.example(5, 13)
    data = dict(kwargs)
    if args:
        data = {"image" if family == "resnet" else "x": args[0]}
        data = {"pixel_values": args[0]} if family == "vit" else data
    if kind == "classes":
        data["labels"] = torch.randint(7, (5,))
    elif kind:
        data["labels"] = torch.randint(zoo.VOCABULARY, (5, 13 if kind == "tokens" else 7))
    criteria = tuple(by_name(name) for name in names)
    compare(traced.module, graph, criteria, data, batch_size=2, kinds=kinds)


def test_inputs_of_convolutions() -> None:
    traced = zoo.traced("resnet", "eager")
    graph = fxprune.discover(traced)
    groups = [group for group in graph.groups if consumers(graph, group)]
    assert any(group.kind == "channel" for group in groups)
    criteria = (WandaSP(), FLAP(), PeakToPeak())
    images = {"image": torch.randn(5, 3, 16, 16)}
    compare(traced.module, graph, criteria, images, exact=True, batch_size=2, groups=groups)


def test_routing() -> None:
    traced = zoo.traced("mixtral", "sdpa")
    graph = fxprune.discover(traced)
    data = torch.randint(zoo.VOCABULARY, (4, 11))
    criteria = tuple(by_name(name) for name in ("reap", "frequency", "expert-norm"))
    compare(traced.module, graph, criteria, data, exact=True, batch_size=2, kinds=("expert",))
    both = (*criteria, Taylor())
    compare(traced.module, graph, both, data, batch_size=2, kinds=("expert",))


def test_never_more_than_two_pieces_are_in_memory(
    model: LlamaForCausalLM, graph: DependencyGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = pieces_of(graph.traced)
    adjacent = [{*one.tensors, *other.tensors} for one, other in itertools.pairwise(pieces)]
    seen: list[set[str]] = []
    ends = {name for piece in pieces for name in (piece.tensors[0], piece.tensors[-1])}

    class Watched(Counted):
        def read(self, traced: fxprune.Traced, name: str) -> Tensor:
            found = super().read(traced, name)
            if name in ends:  # to look at all that is alive takes a while
                seen.append(self.names())
            return found

    for criterion in (WandaSP(), Taylor(), Taylor(order="mixed"), OBS(), Magnitude()):
        source = Watched()
        estimate(model, graph, criterion, IDS, batch_size=2, kinds=USUAL, stream=source)
        assert source.names() == set()
        assert seen
        assert all(any(names <= two for two in adjacent) for names in seen)
        seen.clear()


def test_what_is_read(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    """Forward criteria stop behind the last consumer; the others read blocks twice."""
    counts = {}
    for criterion in (WandaSP(), OBS()):
        source = Counted()
        estimate(model, graph, criterion, IDS, kinds=USUAL, stream=source)
        read = [name for name, _ in source.alive]
        counts[criterion.__class__] = {name: read.count(name) for name in read}
    up = "model.layers.1.mlp.up_proj.weight"
    assert counts[WandaSP][up] == 1
    assert counts[OBS][up] == 2
    assert "model.norm.weight" not in counts[WandaSP]
    assert counts[OBS]["model.norm.weight"] == 1


def test_losses_of_the_users(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(prediction.flatten(0, 1), target.flatten())

    data = [(IDS[i : i + 2], IDS[i : i + 2].flip(1)) for i in (0, 2, 4)]
    compare(model, graph, (Taylor(), OBS()), data, kinds=USUAL, loss_fn=cross_entropy)

    def of_model(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        mask = torch.ones_like(batch["input_ids"])
        return model(input_ids=batch["input_ids"], attention_mask=mask).logits.square().mean()

    compare(model, graph, (Taylor(),), IDS, batch_size=2, kinds=USUAL, loss_fn=of_model)

    def own(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch, labels=batch["input_ids"]).loss

    with pytest.raises(CalibrationError, match="give a loss_fn that compares logits with labels"):
        estimate(model, graph, Taylor(), IDS, kinds=USUAL, loss_fn=own, stream=Counted())


def test_refusals(model: LlamaForCausalLM, graph: DependencyGraph, tmp_path: Path) -> None:
    def score(criterion: Criterion, data: Any = IDS, source: Any = None, **options: Any) -> Any:
        stream = source or Counted()
        return estimate(model, graph, criterion, data, stream=stream, **options)

    with pytest.raises(CriterionError, match="needs calibration data"):
        score(Taylor(), None)
    with pytest.raises(CriterionError, match="cannot score group"):
        score(OBS(), kinds=("channel",))
    with pytest.raises(CalibrationError, match="the vocabulary has 90"):
        score(WandaSP(), IDS + 80, kinds=USUAL)
    tiny_llama(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no 'model\.layers\.1"):
        score(WandaSP(), source=fxprune.Weights(tmp_path), kinds=USUAL)


def test_the_model_is_left_alone(model: LlamaForCausalLM, graph: DependencyGraph) -> None:
    before = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    source = fxprune.Weights(model)
    model.train()
    estimate(model, graph, (Taylor(), OBS(), FLAP()), IDS, kinds=USUAL, stream=source)
    assert model.training
    model.eval()
    for name, parameter in model.named_parameters():
        assert (parameter, parameter.requires_grad) == before[name]
        assert parameter.grad is None
        assert torch.equal(parameter, values[name])
