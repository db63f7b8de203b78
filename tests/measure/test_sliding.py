"""Windows that overlap and begin with BOS, against a slow loop over tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fxprune.errors import CalibrationError
from fxprune.measure.perplexity import perplexity, windows
from fxprune.measure.sliding import bos_token, score, sliding
from tests.hf import tiny


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
    found = score(model, sliding(ids, length, stride, bos), batch_size=3)
    assert found.perplexity == pytest.approx(slow(model, ids, length, stride, bos), rel=1e-5)
    assert found.tokens == len(ids) - (bos is None)


def test_without_overlap_and_bos_it_is_the_perplexity_of_windows() -> None:
    model, ids = tiny.llama(), torch.randint(tiny.VOCABULARY, (50,))
    found = score(model, sliding(ids, 8))
    assert found.perplexity == pytest.approx(perplexity(model, windows(ids, 8)), rel=1e-6)
    assert (found.windows, found.tokens) == (6, 42)
    some = [window.ids.tolist() for window in sliding(ids, 8, limit=3)]
    assert some == windows(ids, 8, 3).tolist()


def test_bos_is_within_the_length_and_the_token_after_it_counts() -> None:
    cut = sliding(torch.arange(10), 4, bos=99)
    assert [w.ids.tolist() for w in cut] == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    assert [w.scored for w in cut] == [3, 3, 3]


def test_a_stride_of_the_whole_window_keeps_the_tail() -> None:
    assert [w.ids.tolist() for w in sliding(torch.arange(8), 3, 3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7],
    ]
    # A last window of one token predicts nothing.
    assert len(sliding(torch.arange(7), 3, 3)) == 2


def test_standard_error() -> None:
    model, ids = tiny.llama(), torch.randint(tiny.VOCABULARY, (64,))
    assert score(model, sliding(ids, 64)).stderr is None
    found = score(model, sliding(ids, 8))
    # Windows with equally many tokens: the deviation of their means, over the root of their number.
    means = [math.log(score(model, [w]).perplexity) for w in sliding(ids, 8)]
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
        sliding(torch.arange(20), **options)


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
