"""Dropout that is called as a function works in the rewritten graph as in the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import fxprune
from fxprune.rewrite.dropout import AttentionDropout
from fxprune.trace import dropout

ROWS = 4000


class Net(nn.Module):
    """Two linear layers, whose hidden units lose some, and a function of the user's behind them."""

    def __init__(self, drop: Callable[[nn.Module, Tensor], Tensor], p: float = 0.3) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 8)
        self.dropout = nn.Identity()  # its name is taken
        self.p, self.drop = p, drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self, self.dropout(self.down(self.up(x).relu())))


def rewritten(model: nn.Module, x: Any) -> fx.GraphModule:
    """The model without half of its prunable units."""
    graph = fxprune.discover(fxprune.trace(model.eval(), (x,)))
    assert graph.groups
    plan = fxprune.Plan.of(graph, {g.name: range(0, g.size, 2) for g in graph.groups})
    small = fxprune.rewrite(graph.traced, plan)
    fxprune.verify(graph.traced, small, plan)
    return small


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "functional": lambda m, y: functional.dropout(y, m.p, training=m.training),
    "torch": lambda m, y: torch.dropout(y, m.p, m.training),
    "in place": lambda m, y: functional.dropout(y, m.p, m.training, inplace=True),
    "probability by mode": lambda m, y: functional.dropout(y, m.p if m.training else 0.0),
    "both": lambda m, y: functional.dropout(y, m.p if m.training else 0.0, training=m.training),
    "of two axes": lambda m, y: torch.feature_dropout(y, m.p, m.training),
}


@pytest.mark.parametrize("drop", FUNCTIONS.values(), ids=FUNCTIONS)
def test_each_element_goes_with_its_probability(drop: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = Net(drop), torch.randn(ROWS, 6)
    small = rewritten(model, x)
    whole = small(x)
    assert torch.equal(small(x), whole)
    small.train()
    seen = small(x)
    gone = seen == 0
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (gone.float().mean(0) - 0.3).abs().max() < 0.05  # of each column alike
    torch.testing.assert_close(seen[~gone], (whole / 0.7)[~gone])
    assert not torch.equal(small(x), seen)
    seen.sum().backward()
    assert small.down.weight.grad is not None
    assert torch.equal(small.eval()(x), whole)
    assert isinstance(small.get_submodule("dropout_1"), nn.Dropout)


@pytest.mark.parametrize(
    ("drop", "shape", "kind"),
    [
        (functional.dropout1d, (-1, 4, 2), nn.Dropout1d),
        (functional.dropout2d, (-1, 4, 2, 1), nn.Dropout2d),
        (functional.dropout3d, (-1, 4, 2, 1, 1), nn.Dropout3d),
    ],
)
def test_channels_go_whole(drop: Any, shape: tuple[int, ...], kind: type[nn.Module]) -> None:
    model = Net(lambda m, y: drop(y.reshape(shape), m.p, training=m.training))
    x = torch.randn(ROWS, 6)
    small = rewritten(model, x).train()
    gone = (small(x) == 0).reshape(ROWS, 4, 2)
    assert torch.equal(gone[..., 0], gone[..., 1])
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert isinstance(small.get_submodule("dropout_1"), kind)


@pytest.mark.parametrize(
    ("drop", "kind"),
    [
        (functional.alpha_dropout, nn.AlphaDropout),
        (functional.feature_alpha_dropout, nn.FeatureAlphaDropout),
    ],
)
def test_alpha_dropout_keeps_mean_and_variance(drop: Any, kind: type[nn.Module]) -> None:
    def normal(m: Any, y: Tensor) -> Tensor:
        return drop(functional.layer_norm(y, (8,))[..., None], m.p, training=m.training)

    x = torch.randn(ROWS, 6)
    small = rewritten(Net(normal), x)
    whole = small(x)
    seen = small.train()(x)
    assert (seen != whole).float().mean().item() > 0.9  # what stays is scaled
    assert seen.mean().item() == pytest.approx(0, abs=0.05)
    assert seen.std().item() == pytest.approx(1, abs=0.05)
    assert isinstance(small.get_submodule("dropout_1"), kind)


def test_what_never_drops_does_not_and_what_always_does_stays() -> None:
    def drop(m: Any, y: Tensor) -> Tensor:
        y = functional.dropout(y, 0.5, training=False)
        y = functional.dropout(y, 0.0, training=m.training)
        return torch.dropout(y, 0.4, train=False)

    x = torch.randn(8, 6)
    small = rewritten(Net(drop), x)
    assert torch.equal(small.train()(x), small.eval()(x))
    assert not any(isinstance(m, nn.Dropout) for m in small.modules())


class Attention(nn.Module):
    """Values are all ones, so each output is the sum of the weights that are left."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 8), nn.Linear(6, 8)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        q, k = (f(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for f in (self.q, self.k))
        p = self.p if self.training else 0.0
        v = torch.ones_like(k)
        return functional.scaled_dot_product_attention(q * 0, k * 0, v, dropout_p=p)


class WithAttention(nn.Module):
    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.attention = Attention(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.down(self.up(x).relu()))


def test_attention_drops_in_training_mode_alone() -> None:
    model, x = WithAttention(), torch.randn(40, 32, 6)
    small = rewritten(model, x)
    assert torch.equal(small(x), torch.ones_like(small(x)))
    small.train()
    seen = small(x)[..., 0]  # of 32 weights of 1/32, each kept with 0.75 and then 1/24
    assert seen.mean().item() == pytest.approx(1, abs=0.02)
    assert seen.std().item() == pytest.approx((0.25 / 0.75 / 32) ** 0.5, rel=0.1)
    assert not torch.equal(small(x)[..., 0], seen)
    switch = small.get_submodule("attention.attention_dropout")
    assert isinstance(switch, AttentionDropout)
    assert (switch.p, str(switch)) == (0.25, "AttentionDropout(p=0.25)")


def test_a_rewritten_graph_is_rewritten_again() -> None:
    x = torch.randn(5, 7, 6)
    small = rewritten(rewritten(WithAttention(), x), x)
    assert not torch.equal(small.train()(x), small(x))
    assert torch.equal(small.eval()(x), small(x))
    assert [n for n, m in small.named_modules() if isinstance(m, AttentionDropout)] == [
        "attention.attention_dropout"
    ]
    net = rewritten(rewritten(Net(FUNCTIONS["functional"]), x), x)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3]


def test_it_compiles() -> None:
    class Both(WithAttention):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(super().forward(x), 0.5, training=self.training)

    x = torch.randn(5, 32, 6)
    small = rewritten(Both(), x)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), small(x))
    small.train()
    seen = compiled(x)
    assert (seen == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert seen[seen != 0].unique().numel() > 1  # attention drops too
    small.eval()
    torch.testing.assert_close(compiled(x), small(x))


def test_the_transformer_of_torch() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = fxprune.trace(model.eval(), (torch.randn(2, 5, 8),))
    small = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    found = {n: m.p for n, m in small.named_modules() if isinstance(m, AttentionDropout)}
    assert found == {"self_attn.attention_dropout": 0.2}


def test_the_original_is_left_as_it_was() -> None:
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(lambda m, y: functional.dropout(m.norm(y), m.p, m.training))
            self.norm = nn.BatchNorm1d(8)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    model = Normed().eval()
    model.up.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    fxprune.trace(model, (torch.zeros(1, 6),))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_in_code_for_training_alone_is_said() -> None:
    def drop(m: Any, y: Tensor) -> Tensor:
        return functional.dropout(y, m.p) if m.training else y

    model = nn.ModuleDict({"net": Net(drop)})
    model.forward = lambda x: functional.dropout(model["net"](x), 0.1, model.training)  # type: ignore[method-assign]
    with pytest.warns(fxprune.FxpruneWarning, match="in training mode net calls dropout that"):
        traced = fxprune.trace(model.eval(), (torch.randn(4, 6),))
    small = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    assert small.get_submodule("dropout").p == 0.1


def test_what_cannot_be_told_is_said() -> None:
    class Fussy(WithAttention):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and x.sum().item() > 0:
                x = -x
            return functional.dropout(super().forward(x), 0.1, self.training)

    with pytest.warns(fxprune.FxpruneWarning, match="attention in the rewritten graph trains"):
        traced = fxprune.trace(Fussy().eval(), (torch.randn(2, 5, 6),))
    small = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    assert [m.p for m in small.modules() if isinstance(m, nn.Dropout)] == [0.1]


def _attention_probabilities(model: nn.Module) -> set[float]:
    traced = fxprune.trace(model.eval())
    small = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {})).train()
    inputs = dict(traced.kwargs)
    first = small(**inputs)[0]
    assert not torch.equal(small(**inputs)[0], first)
    return {
        m.p
        for n, m in small.named_modules()
        if isinstance(m, AttentionDropout | nn.Dropout) and "att" in n.lower()
    }


TINY = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
TINY |= {"intermediate_size": 12}
NO_TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_dropout_of_transformers(attention: str) -> None:
    config = BertConfig(
        **TINY, attention_probs_dropout_prob=0.2, hidden_dropout_prob=0.0, **NO_TOKENS
    )
    config._attn_implementation = attention
    assert 0.2 in _attention_probabilities(BertModel(config))


def test_attention_dropout_that_the_code_switches_off() -> None:
    config = LlamaConfig(**TINY, attention_dropout=0.3, **NO_TOKENS)
    config._attn_implementation = "eager"
    assert _attention_probabilities(LlamaForCausalLM(config)) == {0.3}


def test_functional_dropout_of_encoder_decoders() -> None:
    sizes = {"d_model": 8, "vocab_size": 40}
    t5 = T5Config(**sizes, d_kv=4, d_ff=12, num_layers=1, num_heads=2, dropout_rate=0.2)
    assert 0.2 in _attention_probabilities(T5ForConditionalGeneration(t5))
    bart = BartConfig(
        **sizes,
        **{f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
           {"layers": 1, "ffn_dim": 12, "attention_heads": 2}.items()},
        attention_dropout=0.2, dropout=0.1, **NO_TOKENS,
        decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    # Its layers ask for a random number in training mode, whether to be skipped.
    assert 0.2 in _attention_probabilities(BartForConditionalGeneration(bart))


def test_dropout_in_and_behind_both_branches_of_cond() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.t = nn.TransformerEncoderLayer(8, 2, 8, 0.3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cond(
                x.sum() > 0,
                lambda x: functional.dropout(self.a(x), 0.1, self.training),
                lambda x: functional.dropout(self.b(x), 0.2, self.training),
                (x,),
            )
            return self.t(x)

    cond = torch.cond
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.FxpruneWarning)
        traced = fxprune.trace(Branched().eval(), torch.randn(2, 5, 8))
    assert torch.cond is cond
    nodes = list(dropout._nodes(traced.graph_module))
    marked = [n.meta[dropout.META] for n in nodes if dropout.META in n.meta]
    assert marked == [0.1, 0.2, *[0.3] * 4]  # attention and three modules
