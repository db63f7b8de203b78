"""Perplexity against the definition and a slow loop over tokens, on every kind of output."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

import fxprune
from fxprune.errors import CalibrationError
from fxprune.measure.perplexity import Window, bos_token, perplexity, windows
from tests.hf import tiny


def rows(ids: torch.Tensor) -> list[Window]:
    """Windows of which all tokens but the first count."""
    return [Window(row, ids.shape[1] - 1) for row in ids]


class Constant(nn.Module):
    """The same logits everywhere, wrapped in some way."""

    def __init__(self, row: torch.Tensor, wrap: Any = lambda x: x) -> None:
        super().__init__()
        self.row, self.wrap = row, wrap

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.wrap(self.row.expand(*input_ids.shape, -1))


def test_windows_do_not_overlap_and_drop_the_tail() -> None:
    cut = windows(torch.arange(10), 3)
    assert [window.ids.tolist() for window in cut] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [window.scored for window in cut] == [2, 2, 2]


def test_limited_windows_are_spread() -> None:
    cut = windows(torch.arange(100), 10, limit=3)
    assert [window.ids[0].item() for window in cut] == [0, 40, 90]
    assert len(windows(torch.arange(100), 10, limit=99)) == 10


@pytest.mark.parametrize(("count", "length"), [(0, 8), (7, 8), (5, 1)])
def test_too_few_tokens(count: int, length: int) -> None:
    with pytest.raises(
        CalibrationError, match=f"has {count} tokens, a window needs {max(2, length)}"
    ):
        windows(torch.arange(count), length)


def test_uniform_guess_has_the_vocabulary_as_perplexity() -> None:
    found = perplexity(Constant(torch.zeros(50)), rows(torch.arange(40).view(4, 10)))
    assert found.perplexity == pytest.approx(50)
    assert (found.windows, found.tokens) == (4, 36)


def test_agrees_with_transformers_own_loss() -> None:
    model = tiny.llama()
    ids = torch.randint(tiny.VOCABULARY, (5, 12))
    with torch.no_grad():
        expected = math.exp(model(input_ids=ids, labels=ids).loss)
    for batch_size in (1, 2, 5, 99):
        found = perplexity(model, rows(ids), batch_size=batch_size)
        assert found.perplexity == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 1), lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x)],
    ids=["tensor", "tuple", "dict", "object"],
)
def test_logits_in_any_wrapping(wrap: Any) -> None:
    model = Constant(torch.zeros(7), wrap)
    found = perplexity(model, rows(torch.ones(1, 3, dtype=torch.long)))
    assert found.perplexity == pytest.approx(7)


@pytest.mark.parametrize("output", [None, {"loss": torch.ones(())}, SimpleNamespace(), ()])
def test_no_logits(output: Any) -> None:
    model = Constant(torch.zeros(7), lambda _: output)
    with pytest.raises(CalibrationError, match="Constant gives no logits; perplexity needs a"):
        perplexity(model, rows(torch.ones(1, 3, dtype=torch.long)))


def test_hopeless_and_broken_models_give_a_number_all_the_same() -> None:
    hopeless, broken = torch.tensor([0.0, 1e6]), torch.tensor([math.nan, 0.0])
    ids = rows(torch.zeros(2, 4, dtype=torch.long))
    assert perplexity(Constant(hopeless), ids).perplexity == math.inf
    assert math.isnan(perplexity(Constant(broken), ids).perplexity)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    perplexity(Constant(torch.zeros(7)), rows(torch.zeros(2, 4, dtype=torch.long)), progress=True)
    assert capsys.readouterr().out == ""


def slow(model: Any, ids: torch.Tensor, length: int, stride: int, bos: int | None) -> float:
    """Each token but the first (with BOS that too) once, with the context of its window."""
    room = length - (bos is not None)
    logs, done = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + room, len(ids))
        for place in range(max(done, begin + (bos is None)), end):
            context = ([] if bos is None else [bos]) + ids[begin:place].tolist()
            with torch.no_grad():
                predicted = model(input_ids=torch.tensor([context])).logits[0, -1]
            logs.append(-predicted.log_softmax(-1)[ids[place]].item())
        done = end
        if end == len(ids):
            break
    assert len(logs) == len(ids) - (bos is None)
    return math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize("bos", [None, 7])
@pytest.mark.parametrize(("length", "stride"), [(10, 4), (10, 1), (10, 9), (16, 5)])
def test_stride_against_a_slow_loop(length: int, stride: int, bos: int | None) -> None:
    model, ids = tiny.llama(), torch.randint(tiny.VOCABULARY, (43,))
    found = perplexity(model, windows(ids, length, stride=stride, bos=bos), batch_size=3)
    assert found.perplexity == pytest.approx(slow(model, ids, length, stride, bos), rel=1e-5)
    assert found.tokens == len(ids) - (bos is None)


def test_bos_is_within_the_length_and_the_token_after_it_counts() -> None:
    cut = windows(torch.arange(10), 4, bos=99)
    assert [w.ids.tolist() for w in cut] == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    assert [w.scored for w in cut] == [3, 3, 3]


def test_a_stride_of_the_whole_window_keeps_the_tail() -> None:
    assert [w.ids.tolist() for w in windows(torch.arange(8), 3, stride=3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7],
    ]
    # A last window of one token predicts nothing.
    assert len(windows(torch.arange(7), 3, stride=3)) == 2


def test_standard_error() -> None:
    model, ids = tiny.llama(), torch.randint(tiny.VOCABULARY, (64,))
    assert perplexity(model, windows(ids, 64)).stderr is None
    found = perplexity(model, windows(ids, 8))
    # Windows with equally many tokens: the deviation of their means, over the root of their number.
    means = [math.log(perplexity(model, [w]).perplexity) for w in windows(ids, 8)]
    expected = torch.tensor(means).std().item() / math.sqrt(8) * found.perplexity
    assert found.stderr == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "needs 2"),
        ({"length": 1, "bos": 5}, "needs 1"),
        ({"length": 21}, "has 20 tokens, a window needs 21"),
        ({"length": 8, "stride": 9}, "take 1 to 8"),
        ({"length": 8, "stride": 8, "bos": 5}, "take 1 to 7"),
        ({"length": 8, "stride": 0}, "take 1 to 8"),
        ({"length": 8, "limit": 0}, "take at least 1"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        windows(torch.arange(20), **options)


def adding(bos: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which puts BOS before a text by itself."""
    from tokenizers.processors import TemplateProcessing

    made = tiny.tokenizer()
    made.add_special_tokens({"bos_token": bos})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)]
    )
    return made


def test_bos_policies() -> None:
    plain, gemma = tiny.tokenizer(), adding("<begin>")
    assert bos_token(plain) is None
    assert bos_token(gemma) == gemma.bos_token_id
    assert bos_token(gemma, "none") is None
    with pytest.raises(CalibrationError, match="no BOS token"):
        bos_token(plain, "window")
    with pytest.raises(CalibrationError, match="auto, window, none"):
        bos_token(plain, "always")
    silent = tiny.tokenizer()
    silent.add_special_tokens({"bos_token": "<begin>"})
    assert bos_token(silent) is None
    assert bos_token(silent, "window") == silent.bos_token_id


def test_the_ratio_of_two_models_counts_each_window_against_itself() -> None:
    from fxprune.measure.perplexity import ratio

    hard = [1.0, 5.0, 9.0, 3.0]
    worse = [value + add for value, add in zip(hard, (0.1, 0.2, 0.1, 0.2), strict=True)]
    found = ratio([worse], [hard])
    assert found is not None
    assert found[0] == pytest.approx(math.exp(0.15))
    assert found[1] == pytest.approx(math.exp(0.15) * 0.05 * math.sqrt(4 / 3) / 2)
    assert ratio([worse, hard], [hard]) == pytest.approx(
        (math.exp(0.075), math.exp(0.075) * 0.025 * math.sqrt(4 / 3) / 2)
    )
    assert ratio([[1.0]], [[1.0]]) is None
    assert ratio([[1.0, math.inf]], [[1.0, 2.0]]) is None


def test_in_pieces(tmp_path: Any) -> None:
    """All windows through one piece after the other, from a folder: the same losses."""
    model = tiny.llama(num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    cut = windows(torch.randint(250, (100,)), 16, stride=10)
    expected = perplexity(model, cut, batch_size=3)
    traced = fxprune.trace(model)
    for memory in (None, 0):
        source = fxprune.Weights(tmp_path, memory=memory)
        found = perplexity(traced, cut, batch_size=3, stream=source)
        assert found.losses == expected.losses
        assert found.perplexity == expected.perplexity
    with pytest.raises(CalibrationError, match="give stream="):
        perplexity(traced, cut)
