"""Perplexity against the definition, and on every kind of output."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fxprune.errors import CalibrationError
from fxprune.measure.perplexity import logits, perplexity, windows
from tests.hf import tiny


class Constant(nn.Module):
    """The same logits everywhere, wrapped in some way."""

    def __init__(self, row: torch.Tensor, wrap: Any = lambda x: x) -> None:
        super().__init__()
        self.row, self.wrap = row, wrap

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.wrap(self.row.expand(*input_ids.shape, -1))


def test_windows_do_not_overlap_and_drop_the_tail() -> None:
    assert windows(torch.arange(10), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_limited_windows_are_spread() -> None:
    assert windows(torch.arange(100), 10, 3)[:, 0].tolist() == [0, 40, 90]
    assert len(windows(torch.arange(100), 10, 99)) == 10


@pytest.mark.parametrize(("count", "length"), [(0, 8), (7, 8), (5, 1)])
def test_too_few_tokens(count: int, length: int) -> None:
    with pytest.raises(
        CalibrationError, match=f"has {count} tokens, a window needs {max(2, length)}"
    ):
        windows(torch.arange(count), length)


def test_uniform_guess_has_the_vocabulary_as_perplexity() -> None:
    assert perplexity(Constant(torch.zeros(50)), torch.arange(40).view(4, 10)) == pytest.approx(50)


def test_agrees_with_transformers_own_loss() -> None:
    model = tiny.llama()
    ids = torch.randint(tiny.VOCABULARY, (5, 12))
    with torch.no_grad():
        expected = math.exp(model(input_ids=ids, labels=ids).loss)
    for batch_size in (1, 2, 5, 99):
        assert perplexity(model, ids, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 1), lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x)],
    ids=["tensor", "tuple", "dict", "object"],
)
def test_logits_in_any_wrapping(wrap: Any) -> None:
    model = Constant(torch.zeros(7), wrap)
    assert perplexity(model, torch.ones(1, 3, dtype=torch.long)) == pytest.approx(7)


@pytest.mark.parametrize("output", [None, {"loss": torch.ones(())}, SimpleNamespace(), ()])
def test_no_logits(output: Any) -> None:
    with pytest.raises(CalibrationError, match="no logits"):
        logits(output)


def test_hopeless_and_broken_models_give_a_number_all_the_same() -> None:
    hopeless, broken = torch.tensor([0.0, 1e6]), torch.tensor([math.nan, 0.0])
    ids = torch.zeros(2, 4, dtype=torch.long)
    assert perplexity(Constant(hopeless), ids) == math.inf
    assert math.isnan(perplexity(Constant(broken), ids))


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    perplexity(Constant(torch.zeros(7)), torch.zeros(2, 4, dtype=torch.long), progress=True)
    assert capsys.readouterr().out == ""
