"""What a module is called with, and whether it predicts the next token."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import RecoveryError
from fxprune.recover.calls import check_causal, cross_entropy, next_token, taker
from tests.hf import tiny
from tests.zoo import ZOO, Entry, built

NOT_CAUSAL = {
    "t5": "does not run",
    "bert": "sees the tokens",
    "distilbert": "sees the tokens",
    "vit": "takes no input_ids",
    "resnet": "takes no input_ids",
    "perceptron": "takes no input_ids",
}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_language_models_are_told_from_others(entry: Entry) -> None:
    model = entry.build(entry.backends[-1]).train()  # its own: the shared ones stay in eval()
    said = NOT_CAUSAL.get(entry.name)
    if said is None:
        check_causal(model)
    else:
        with pytest.raises(RecoveryError, match=said):
            check_causal(model)
    assert all(module.training for module in model.modules())


def test_a_graph_of_a_masked_language_model_is_refused() -> None:
    graph = fxprune.trace(built("bert", "sdpa"))
    with pytest.raises(RecoveryError, match="sees the tokens"):
        check_causal(graph.graph_module)


def test_a_graph_with_a_mask_takes_it() -> None:
    ids = torch.arange(14).view(2, 7)
    mask = torch.ones_like(ids)
    traced = fxprune.trace(tiny.llama(), kwargs={"input_ids": ids, "attention_mask": mask})
    check_causal(traced.graph_module)
    taken = taker(traced.graph_module)({"input_ids": ids, "attention_mask": mask, "labels": ids})
    assert taken.keys() == {"input_ids", "attention_mask"}
    assert taker(tiny.llama())({"input_ids": ids, "attention_mask": mask}).keys() == {
        "input_ids",
        "use_cache",
    }


def test_a_graph_with_another_input_is_refused() -> None:
    ids = torch.arange(14).view(2, 7)
    places = torch.arange(7).expand(2, 7)
    traced = fxprune.trace(tiny.llama(), kwargs={"input_ids": ids, "position_ids": places})
    with pytest.raises(RecoveryError, match="position_ids"):
        taker(traced.graph_module)


def test_loss_by_hand() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, 2, 3], [4, -100, 0]])
    predicted, following = next_token((logits,), labels, nn.Identity())
    chances = logits.log_softmax(-1)
    expected = -(chances[0, 0, 2] + chances[0, 1, 3] + chances[1, 1, 0])
    torch.testing.assert_close(cross_entropy(predicted, following, None), expected / 3)
    torch.testing.assert_close(cross_entropy(predicted, following, 12), expected / 12)


def test_logits_of_another_shape_are_refused() -> None:
    with pytest.raises(RecoveryError, match="not a language model"):
        next_token(torch.randn(2, 5), torch.zeros(2, 3, dtype=torch.long), nn.Identity())
    with pytest.raises(RecoveryError, match="gives no logits to train on"):
        next_token({}, torch.zeros(2, 3, dtype=torch.long), nn.Identity())
