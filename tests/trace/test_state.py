"""A model is left as it was found, whatever a run wrote into it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxprune
from fxprune.errors import TraceError
from fxprune.trace.state import preserved


class Holder:
    def __init__(self) -> None:
        self.count = 0


class Untidy(nn.Module):
    """Writes into everything a module can have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("table", torch.ones(4), persistent=False)
        self.plain = torch.zeros(3)
        self.cache: dict[str, Any] = {"old": [1]}
        self.history: list[Any] = []
        self.names = {"a"}
        self.holder = Holder()
        self.last: Any = None

    def forward(self, x: torch.Tensor, fail: bool = False) -> torch.Tensor:
        self.seen += 1
        self.table = self.table * 2
        self.plain.add_(1)
        self.cache["new"] = x
        self.cache["old"].append(2)
        self.history.append(x)
        self.names.add("b")
        self.holder.count += 1
        self.last = x
        self.extra = nn.Identity()
        self.register_forward_hook(lambda *given: None)
        self.train()
        if fail:
            raise RuntimeError("halfway")
        return self.linear(x)


def _facts(model: Untidy) -> Any:
    return (
        float(model.seen), model.table.tolist(), id(model.table), model.plain.tolist(),
        copy.deepcopy(model.cache), list(model.history), set(model.names), model.holder.count,
        model.last, sorted(vars(model)), sorted(model._modules), len(model._forward_hooks),
        model.training,
    )  # fmt: skip


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(fail: bool) -> None:
    model = Untidy().eval()
    before = _facts(model)
    try:
        with preserved(model):
            model(torch.randn(2, 4), fail)
    except RuntimeError:
        assert fail
    assert _facts(model) == before


class Counting(nn.Module):
    """Keeps a count and a fake-able cache, as rotary embeddings do."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.linear, self.fail = nn.Linear(4, 4), fail
        self.register_buffer("scale", torch.ones(4))
        self.cache: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache.append(x.shape)
        self.register_buffer("scale", torch.ones(4) * 2)
        if self.fail and x.sum() > 0:
            return x
        return self.linear(x) * self.scale


def test_tracing_leaves_a_model_as_it_was() -> None:
    model = Counting()
    before = model.scale
    fxprune.trace(model, (torch.randn(3, 4),))
    assert model.scale is before
    assert model.cache == []
    assert copy.deepcopy(model).scale.tolist() == [1.0] * 4


def test_so_does_tracing_that_fails() -> None:
    model = Counting(fail=True).train()
    before = model.scale
    with pytest.raises(TraceError):
        fxprune.trace(model, (torch.randn(3, 4),))
    assert model.scale is before
    assert model.cache == []
    assert model.training


def test_a_rotary_embedding_that_grows_is_left_alone() -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4, "original_max_position_embeddings": 16, "factor": 8.0,
    }  # fmt: skip
    config = transformers.Phi3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, max_position_embeddings=128, original_max_position_embeddings=16,
        rope_parameters=rope,
    )  # fmt: skip
    model = transformers.Phi3ForCausalLM(config).eval()
    fresh, ids = copy.deepcopy(model), torch.randint(3, 90, (2, 40))
    fxprune.trace(model)
    with torch.no_grad():
        expected, found = (m(input_ids=ids, use_cache=False).logits for m in (fresh, model))
    assert torch.equal(expected, found)
    copy.deepcopy(model)
