"""Tracing: names, symbolic sizes, modes, and what a user is told when it cannot be done."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from torch import fx, nn

import fxprune
from fxprune.errors import FxpruneWarning, TraceError
from tests.llama import tiny_llama


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.second = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_traced_graph_computes_the_model_and_shares_its_tensors() -> None:
    model = tiny_llama()
    ids = torch.randint(0, model.config.vocab_size, (3, 9))
    traced = fxprune.trace(model, kwargs={"input_ids": ids})
    with torch.no_grad():
        torch.testing.assert_close(
            traced.graph_module(input_ids=ids).logits, model(input_ids=ids).logits
        )
    parameters = dict(model.named_parameters())
    assert set(parameters) <= set(traced.tensors)
    assert all(traced.tensors[name] is p for name, p in parameters.items())


def test_batch_and_length_stay_symbolic_even_from_a_batch_of_one() -> None:
    model = tiny_llama()
    traced = fxprune.trace(model, kwargs={"input_ids": torch.randint(0, 90, (1, 7))})
    for shape in ((1, 7), (4, 3), (2, 12)):
        assert traced.graph_module(input_ids=torch.randint(0, 90, shape)).logits.shape[:2] == shape


def test_example_inputs_come_from_the_config() -> None:
    traced = fxprune.trace(tiny_llama())
    assert set(traced.kwargs) == {"input_ids"}


def test_without_config_or_inputs_the_user_is_asked_for_them() -> None:
    with pytest.raises(TraceError, match="pass args="):
        fxprune.trace(Chain())


def test_meta_models_need_no_weights() -> None:
    with torch.device("meta"):
        model = tiny_llama()
    graph = fxprune.discover(fxprune.trace(model))
    assert {g.kind for g in graph.groups} >= {"mlp", "attention", "channel"}


def test_tied_weights_are_one_tensor() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    traced = fxprune.trace(model)
    assert traced.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in traced.tensors
    assert traced.canonical("lm_head.weight") == "model.embed_tokens.weight"


def test_mode_and_config_are_left_as_they_were() -> None:
    model = tiny_llama().train()
    model.model.norm.eval()
    model.config.use_cache = True
    fxprune.trace(model)
    assert model.training
    assert not model.model.norm.training
    assert model.config.use_cache


def test_graph_modules_go_through_the_same_door() -> None:
    symbolic = fx.symbolic_trace(Chain())
    graph = fxprune.discover(fxprune.trace(symbolic, (torch.randn(3, 6),)))
    assert [g.size for g in graph.groups] == [10]
    sizes = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(Chain(), (torch.randn(3, 6),), dynamic_shapes=sizes).module()
    again = fxprune.discover(fxprune.trace(exported))
    assert [g.size for g in again.groups] == [10]


def test_a_symbolic_trace_without_inputs_asks_for_them() -> None:
    with pytest.raises(TraceError, match="no recorded example"):
        fxprune.trace(fx.symbolic_trace(Chain()))


class FixedBatch(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(3, 6))


def test_a_lost_size_is_said() -> None:
    with pytest.warns(FxpruneWarning, match=r"axis 0 \(batch\) of args\[0\] is fixed at 3"):
        traced = fxprune.trace(FixedBatch(), (torch.randn(3, 6),))
    assert fxprune.discover(traced).groups


def test_symbolic_models_trace_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.trace(tiny_llama())


class DataDependent(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line a user must be sent to
            x = x + 1
        return super().forward(x)


def test_a_model_that_cannot_be_exported_names_the_line() -> None:
    with pytest.raises(TraceError, match=r"test_export\.py:\d+: `if x\.sum\(\) > 0") as caught:
        fxprune.trace(DataDependent(), (torch.randn(3, 6),))
    assert "write that module so that all data goes one way" in str(caught.value)


class Entropy(Chain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return torch.distributions.Categorical(logits=logits).entropy()


def test_checks_of_a_distribution_are_no_obstacle() -> None:
    """They look at values, and do nothing but raise."""
    checks = torch.distributions.Distribution._validate_args
    traced = fxprune.trace(Entropy(), (x := torch.randn(3, 6),))
    torch.testing.assert_close(traced.graph_module(x), traced.module(x))
    assert torch.distributions.Distribution._validate_args is checks


def test_wrong_names_are_refused_with_the_right_ones() -> None:
    with pytest.raises(TraceError, match=r"input_idz.*It takes: .*input_ids"):
        fxprune.trace(tiny_llama(), kwargs={"input_idz": torch.ones(2, 5, dtype=torch.long)})
    with pytest.raises(TraceError, match=r"do not fit Chain\.forward"):
        fxprune.trace(Chain(), (torch.randn(2, 6), torch.randn(2, 6)))


def test_inputs_on_another_device_are_refused() -> None:
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")
    with pytest.raises(TraceError, match=r"input_ids is on meta but the model is on cpu"):
        fxprune.trace(tiny_llama(), kwargs={"input_ids": ids})


class Regions(nn.Module):
    """A frozen part under no_grad, as in feature extractors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(torch.relu(x))


def test_gradients_still_stop_where_they_stopped() -> None:
    traced = fxprune.trace(Regions(), (torch.randn(3, 6),))
    traced.graph_module(torch.randn(5, 6)).sum().backward()
    assert traced.tensors["backbone.weight"].grad is None
    assert traced.tensors["head.weight"].grad is not None


def test_factories_follow_the_device_of_the_input() -> None:
    traced = fxprune.trace(tiny_llama())
    ids = torch.ones(2, 5, dtype=torch.long, device="meta")
    moved = traced.graph_module.to("meta")
    assert moved(input_ids=ids).logits.device.type == "meta"


def test_encoder_decoders_and_images_have_example_inputs() -> None:
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4,
            decoder_start_token_id=0,
        )
    )  # fmt: skip
    assert set(fxprune.trace(t5).kwargs) == {"input_ids", "decoder_input_ids"}
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
            image_size=8, patch_size=4,
        )
    )  # fmt: skip
    assert fxprune.trace(vit).kwargs["pixel_values"].shape == (2, 3, 8, 8)
