"""Pruned graphs against the same shapes built by transformers from a smaller config.

The oracle runs the original graph; this test shares nothing with it. It is also the plain proof for
the residual stream, whose norms make "zeroed" and "removed" two things.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fxprune
from fxprune.plan import Plan
from tests.marks import but_slow
from tests.zoo import _LLAMA, BY_NAME, OTHER, built

SMALLER: dict[str, Any] = {
    "hidden_size": 28,
    "intermediate_size": 30,
    "num_key_value_heads": 2,
    "num_attention_heads": 4,
}
KEPT = {"channel": 28, "mlp": 30, "attention": 2}


@pytest.mark.parametrize("attention", but_slow(["eager", "sdpa"], "eager"))
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_equals_the_smaller_model_of_transformers(name: str, attention: str) -> None:
    args, kwargs = BY_NAME[name].example()
    model = built(name, attention)
    graph = fxprune.discover(fxprune.trace(model, args, kwargs))
    choice = np.random.default_rng(7)
    kept = {
        group.name: np.sort(choice.permutation(group.size)[: KEPT[group.kind]]).tolist()
        for group in graph.groups
        if group.kind in KEPT
    }
    small = fxprune.rewrite(graph.traced, Plan.of(graph, kept))

    config = getattr(transformers, type(model.config).__name__)(**{**_LLAMA, **SMALLER})
    config._attn_implementation = attention
    reference = type(model)._from_config(config).eval()
    weights = {key: value for key, value in small.state_dict().items() if "inv_freq" not in key}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not missing

    _, kwargs = BY_NAME[name].example(*OTHER)
    with torch.no_grad():
        expected = reference(**kwargs, use_cache=False).logits
        torch.testing.assert_close(small(**kwargs).logits, expected, rtol=1e-4, atol=1e-5)
