"""Example inputs as users give them, and what is said of those that a model cannot take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

import fxprune
from fxprune import PruneConfig
from fxprune.errors import CalibrationError, TraceError
from fxprune.passes import Prune
from fxprune.trace.given import examples
from tests.hf import tiny


class Keyed(nn.Module):
    """Its one input is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.linear(features["x"])


class Many(nn.Module):
    """Its one input is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, pictures: list[Tensor]) -> list[Tensor]:
        return [self.linear(each) for each in pictures]


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


X = torch.randn(3, 8)
MLP = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 4)).eval()


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        (MLP, (X,), ((X,), {})),
        (MLP, X, ((X,), {})),
        (MLP, [X], ((X,), {})),
        (MLP, {"input": X}, ((), {"input": X})),
        (Keyed(), {"x": X}, (({"x": X},), {})),
        (Many(), [X, X], (([X, X],), {})),
        (Two(), [X, X], ((X, X), {})),
        (MLP, None, ((), {})),
    ],
)
def test_what_stands_for_a_tuple(model: nn.Module, given: Any, expected: Any) -> None:
    args, kwargs = examples(model, given)
    assert (len(args), list(kwargs)) == (len(expected[0]), list(expected[1]))
    assert str(args) == str(expected[0])


def test_everything_that_takes_examples_takes_a_tensor(tmp_path: Any) -> None:
    result = fxprune.prune(MLP, X, pruning_ratio=0.3, criterion=fxprune.Magnitude())
    assert result.report is not None
    small, plan, traced = result.graph_module, result.plan, result.traced
    assert fxprune.verify(traced, small, plan, X)
    assert fxprune.trace(MLP, X).args == (X,)
    assert fxprune.export(small, tmp_path / "m.pt2", X).is_file()
    again = Prune(PruneConfig(pruning_ratio=0.1, criterion="magnitude"), args=X)
    assert again(small).graph_module(X).shape == (3, 4)  # type: ignore[union-attr]


def test_batches_of_a_tokenizer() -> None:
    ids = torch.arange(3, 17).view(2, 7)
    given = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert set(fxprune.trace(tiny.llama(), given).kwargs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("given", [3.5, "text", X.numpy()])
def test_what_is_no_input(given: Any) -> None:
    with pytest.raises(TraceError, match=f"cannot be {type(given).__name__}: give args="):
        fxprune.trace(MLP, given)


TOKENS = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 10)).eval()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((2, 5), 10), r"holds the token 10, and the vocabulary has 10 \(0.weight\)"),
        (torch.full((2, 5), -1), "holds the token -1, and the vocabulary has 10"),
    ],
)
def test_tokens_beyond_the_vocabulary(ids: Tensor, message: str) -> None:
    with pytest.raises(TraceError, match=f"example input .* {message}"):
        fxprune.trace(TOKENS, ids)
    good = torch.arange(10).view(2, 5)
    data = [good, ids]
    for options in (
        {"criterion": fxprune.Taylor(), "calibration": data},
        {"criterion": fxprune.WandaSP(), "calibration": data},
        {
            "criterion": fxprune.Magnitude(),
            "compensation": "bias",
            "compensation_data": data,
        },
    ):
        with pytest.raises(CalibrationError, match=f"calibration input .* {message}"):
            fxprune.prune(TOKENS, good, pruning_ratio=0.1, **options)


def test_tokens_of_a_tied_and_shifted_table() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(30, 4), nn.Embedding(6, 4)
            self.head = nn.Linear(4, 30, bias=False)
            self.head.weight = self.words.weight

        def forward(self, words: Tensor, places: Tensor) -> Tensor:
            return self.head(self.words(words.long()) + self.places(places))

    good = torch.arange(5)[None].repeat(2, 1)
    assert fxprune.trace(Positions(), (good.int() + 20, good))
    with pytest.raises(TraceError, match=r"places holds the token 7, .* has 6 \(places.weight\)"):
        fxprune.trace(Positions(), (good, good + 3))


def test_ids_that_are_no_integers() -> None:
    with pytest.raises(TraceError, match=r"token ids are integers: give args\[0\].long\(\)"):
        fxprune.trace(TOKENS, torch.rand(2, 5))
    good = torch.arange(10).view(2, 5)
    with pytest.raises(CalibrationError, match=r"token ids are integers: give .*\.long\(\)"):
        fxprune.prune(
            TOKENS, good, pruning_ratio=0.1, criterion=fxprune.Taylor(), calibration=good.float()
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_inputs_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(TraceError, match=rf"is {dtype} and the model torch.float32: give .*\.to\("):
        fxprune.trace(MLP, X.to(dtype))
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(TraceError, match=rf"is {dtype} and the model torch.float32: give "):
        fxprune.trace(convolution, torch.ones(2, 3, 8, 8, dtype=dtype))


def test_calibration_data_of_another_dtype() -> None:
    with pytest.raises(
        CalibrationError, match=r"cannot run on the calibration data .*: give input.to\(torch.flo"
    ):
        fxprune.prune(
            MLP, X, pruning_ratio=0.1, criterion=fxprune.WandaSP(), calibration=[X.half()]
        )


def test_a_model_that_casts_its_inputs_takes_them() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.to(self.linear.weight.dtype))

    assert fxprune.trace(Casting(), X.half())
