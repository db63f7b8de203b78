"""Leaf modules that come back under their own names with the sizes of their weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import RewriteError
from fxprune.plan import Plan


def thirds(model: nn.Module, *example: Tensor) -> fx.GraphModule:
    """The model without every third unit of every group; proven."""
    with warnings.catch_warnings():
        # A convolution fixes how many channels there are.
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)
        traced = fxprune.trace(model.eval(), example)
    graph = fxprune.discover(traced)
    kept = {g.name: [u for u in range(g.size) if u % 3 != 1 or g.size < 3] for g in graph.groups}
    plan = Plan.of(graph, kept)
    small = fxprune.rewrite(traced, plan)
    fxprune.verify(traced, small, plan)
    return small


def trains(small: nn.Module, *example: Tensor) -> None:
    small.train()
    result = small(*example)
    first = result[0] if isinstance(result, tuple) else result
    first.square().mean().backward()
    assert all(p.grad is not None for p in small.parameters())


def called(small: fx.GraphModule) -> set[str]:
    return {str(n.target) for n in small.graph.nodes if n.op == "call_module"}


def test_transposed_convolutions() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 12, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 18, 3, groups=6, output_padding=0),
        nn.BatchNorm2d(18),
        nn.ConvTranspose2d(18, 4, 2, bias=False),
    )
    x = torch.randn(2, 3, 5, 5)
    small = thirds(model, x)
    assert {"0", "2", "4"} <= called(small)
    first, middle, last = (small.get_submodule(name) for name in "024")
    assert (first.in_channels, first.out_channels) == (3, 8)
    assert (middle.in_channels, middle.out_channels, middle.groups) == (8, 8, 4)
    assert (last.in_channels, last.out_channels) == (8, 4)
    assert type(middle) is nn.ConvTranspose2d
    trains(small, x)


def test_dropout_in_place_is_there_in_training() -> None:
    model = nn.Sequential(
        nn.Linear(6, 12), nn.Dropout(0.5, inplace=True), nn.ReLU(inplace=True), nn.Linear(12, 3)
    )
    x = torch.randn(50, 6)
    small = thirds(model, x)
    assert small.get_submodule("1").inplace
    torch.manual_seed(0)
    small.train()
    assert not torch.equal(small(x), small(x))
    small.eval()
    assert torch.equal(small(x), small(x))


def test_a_weight_norm_is_computed_in_training() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Conv1d(4, 12, 3)), nn.ReLU(), norm(nn.Conv1d(12, 9, 3)), nn.Conv1d(9, 2, 1)
    )
    x = torch.randn(2, 4, 20)
    small = thirds(model, x)
    names = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert names["2.parametrizations.weight.original0"] == (6, 1, 1)
    assert names["2.parametrizations.weight.original1"] == (6, 8, 3)
    trains(small, x)


class Tagger(nn.Module):
    """An embedding, two recurrent layers that hand their state on, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.read = nn.LSTM(12, 9, 2, dropout=0.5, batch_first=True, proj_size=6)
        self.write = nn.LSTM(6, 9, 2, batch_first=True, proj_size=6)
        self.both = nn.GRU(6, 9, bidirectional=True, batch_first=True)
        self.step = nn.GRUCell(18, 9)
        self.out = nn.Linear(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x, states = self.read(self.embed(ids))
        x, _ = self.write(x, states)
        x, last = self.both(x)
        first = self.step(x[:, 0], last[-1])
        return self.out(self.step(x[:, 1], first))


def test_recurrent_layers() -> None:
    ids = torch.arange(14).view(2, 7)
    small = thirds(Tagger(), ids)
    read, both, step = (small.get_submodule(name) for name in ("read", "both", "step"))
    assert {"read", "write", "both", "step"} <= called(small)
    assert isinstance(read, nn.LSTM)
    assert (read.input_size, read.hidden_size, read.proj_size, read.num_layers) == (8, 6, 4, 2)
    assert (both.input_size, both.hidden_size, both.bidirectional) == (4, 6, True)
    assert (step.input_size, step.hidden_size) == (12, 6)
    assert not [n for n in small.graph.nodes if "lstm" in str(n.target) or "gru" in str(n.target)]
    state = small.state_dict()
    again = nn.LSTM(8, 6, 2, batch_first=True, proj_size=4)
    again.load_state_dict({k.removeprefix("read."): v for k, v in state.items() if "read" in k})
    trains(small, ids)
    torch.manual_seed(0)
    assert not torch.equal(small(ids), small(ids)), "no dropout between the layers"


def test_a_projection_to_as_many_outputs_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)  # a number of steps is fixed
        traced = fxprune.trace(Tagger().eval(), (torch.arange(14).view(2, 7),))
    graph = fxprune.discover(traced)
    hidden = next(g for g in graph.groups if "read.weight_hr_l0[1]" in map(str, g.sites))
    plan = Plan.of(graph, {hidden.name: range(6)})
    with pytest.raises(RewriteError, match="keep more of its hidden units"):
        fxprune.rewrite(traced, plan)


def test_the_original_recurrent_layer_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.LSTM(12, 9))
    layer = model[1]
    assert isinstance(layer, nn.LSTM)
    before = [weight.shape for weight in layer._flat_weights]
    x = torch.randn(7, 2, 6)
    with torch.no_grad():
        expected = model(x)[0]
        thirds(model, x)
        assert [weight.shape for weight in layer._flat_weights] == before
        assert torch.equal(model(x)[0], expected)
