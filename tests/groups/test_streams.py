"""Hidden units of residual branches are of kind ``mlp``; those of poolers and heads are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxprune
from tests.marks import but_slow


class Layers(nn.Module):
    """A stem, two residual layers, one of them with three matrices, and a head."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 12))
        self.deep = nn.Sequential(
            nn.Linear(12, 17), nn.ReLU(), nn.Linear(17, 19), nn.ReLU(), nn.Linear(19, 12)
        )
        self.gate, self.up, self.down = nn.Linear(12, 23), nn.Linear(12, 23), nn.Linear(23, 12)
        self.head = nn.Sequential(nn.Linear(12, 13), nn.Tanh(), nn.Linear(13, 3))
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.layers > 0:
            x = x + self.deep(x)
        if self.layers > 1:
            x = x + self.down(self.gate(x).sigmoid() * self.up(x))
        return self.head(x)


def kinds(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, list[int]]:
    """Sizes of the groups of hidden units, by kind."""
    found: dict[str, list[int]] = {}
    for group in fxprune.discover(fxprune.trace(model.eval(), args, kwargs)).groups:
        if group.kind in ("mlp", "other", "latent"):
            found.setdefault(group.kind, []).append(group.size)
    return {kind: sorted(sizes) for kind, sizes in found.items()}


def test_layers_and_what_is_before_and_after_them() -> None:
    assert kinds(Layers(), torch.randn(5, 7)) == {"mlp": [17, 19, 23], "other": [11, 13]}


def test_without_layers_a_plain_chain_is_all_there_is() -> None:
    assert kinds(Layers(0), torch.randn(5, 7)) == {"mlp": [11, 12, 13]}


class Tied(nn.Module):
    """A table of its own width, read at the start and at the end, as OPT-350m has it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(29, 11)
        self.places = nn.Embedding(64, 12)
        self.into, self.out = nn.Linear(11, 12, bias=False), nn.Linear(12, 11, bias=False)
        self.up, self.down = nn.Linear(12, 17), nn.Linear(17, 12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.into(self.table(ids)) + self.places(torch.arange(ids.shape[1]))
        x = x + self.down(self.up(x).relu())
        return self.out(x) @ self.table.weight.T


def test_the_width_of_a_tied_table_is_no_branch() -> None:
    assert kinds(Tied(), torch.arange(15).view(3, 5)) == {"mlp": [17], "other": [11]}


_BERT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 6, "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip
_CLASSIFIERS: dict[str, tuple[str, dict[str, Any], dict[str, list[int]]]] = {
    "Bert": ("Bert", _BERT, {"mlp": [40, 40], "other": [48]}),
    "Roberta": ("Roberta", _BERT, {"mlp": [40, 40], "other": [48]}),
    "Albert": ("Albert", {**_BERT, "embedding_size": 24}, {"mlp": [40], "other": [24, 48]}),
    "DistilBert": (
        "DistilBert",
        {"vocab_size": 61, "dim": 48, "hidden_dim": 40, "n_layers": 2, "n_heads": 6},
        {"mlp": [40, 40], "other": [48]},
    ),
}


@pytest.mark.parametrize("name", but_slow(_CLASSIFIERS, "DistilBert", "Roberta"))
def test_classifiers(name: str) -> None:
    family, options, expected = _CLASSIFIERS[name]
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    assert kinds(model, input_ids=torch.arange(3, 30).view(3, 9)) == expected


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_ranks_of_attention_are_no_hidden_units(backend: str) -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=61, hidden_size=48, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=6, num_key_value_heads=6, first_k_dense_replace=1, q_lora_rank=14,
        kv_lora_rank=18, qk_rope_head_dim=4, qk_nope_head_dim=10, v_head_dim=8,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation=backend)
    ids = torch.arange(3, 30).view(3, 9)
    assert kinds(model, input_ids=ids) == {"mlp": [40], "latent": [14, 18]}
