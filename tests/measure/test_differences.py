"""By chance or not: McNemar's test and the bootstrap, on pairs whose answer is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from fxprune.data.text import Text
from fxprune.measure import Settings, beside, evaluate
from fxprune.measure.differences import BOOTSTRAP, MCNEMAR, bootstrap, differences, mcnemar
from fxprune.measure.tasks import TaskScore
from tests.hf import tiny

PROSE = "\n\n".join(f"This is paragraph number {i}, and it is short." for i in range(30))


def test_mcnemar_by_hand() -> None:
    # One is right alone on 1, the other alone on 5: 2 * (C(6,0) + C(6,1)) / 2^6.
    one = [1] * 10 + [1] + [0] * 5
    other = [1] * 10 + [0] + [1] * 5
    assert mcnemar(one, other) == pytest.approx(14 / 64)
    assert mcnemar(other, one) == pytest.approx(14 / 64)
    assert mcnemar(one, one) == 1.0


def test_bootstrap() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=draw)
    zero = torch.zeros(200)
    # That of a z-test, which the bootstrap of a mean of 200 comes to.
    for shift in (0.0, 0.1, 0.15):
        values = noise - noise.mean() + shift
        z = shift / (values.std() / math.sqrt(200))
        expected = math.erfc(abs(z) / math.sqrt(2))
        assert bootstrap(values.tolist(), zero.tolist()) == pytest.approx(expected, abs=0.03)
    assert bootstrap(zero.tolist(), zero.tolist()) == 1.0
    assert bootstrap((zero + 1).tolist(), zero.tolist()) == 2 / 10_000
    again = [bootstrap(noise.tolist(), zero.tolist()) for _ in range(2)]
    assert again[0] == again[1]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """A model and the same with noise, with invented answers to a task."""
    model, settings = tiny.llama(), Settings((16,), generation=False, continuations=3, new=8)
    texts = [Text("prose", (PROSE,))]
    found = [evaluate(model, tiny.tokenizer(), texts=texts, settings=settings, name="dense")]
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn(model.lm_head.weight.shape))
    found.append(evaluate(model, tiny.tokenizer(), texts=texts, settings=settings, name="noisy"))
    answers = ((1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
    tasks = [TaskScore("piqa", "", "acc", sum(a) / 4, 0.1, 4, 0, "1", a) for a in answers]
    one, other = (
        dataclasses.replace(each, tasks=(task,)) for each, task in zip(found, tasks, strict=True)
    )
    return one, other


def test_all_figures(pair: tuple[Any, Any]) -> None:
    dense, noisy = pair
    perplexity, accuracy, repeated = differences(noisy, dense)
    scores = [each.perplexities[0].score for each in (noisy, dense)]
    assert perplexity.change == pytest.approx(scores[0].perplexity / scores[1].perplexity, rel=1e-6)
    assert (perplexity.of, perplexity.length, perplexity.test) == ("prose", 16, BOOTSTRAP)
    assert (accuracy.change, accuracy.p, accuracy.test) == (-0.5, 0.5, MCNEMAR)
    assert (repeated.figure, repeated.of) == ("repeated 4-grams", "prose")
    assert not [d for d in differences(dense, dense) if d.p != 1.0]


def test_other_tokens_are_not_compared(pair: tuple[Any, Any]) -> None:
    dense, noisy = pair
    other = dataclasses.replace(noisy.perplexities[0], digest="of other tokens")
    cut = dataclasses.replace(noisy, perplexities=(other,), continuations=())
    assert [d.figure for d in differences(cut, dense)] == ["acc"]
    (section,) = (s for s in beside.sections([dense, cut]) if s.title == "Perplexity")
    assert "the tokenizer of noisy cuts the texts into other tokens" in section.note
    assert " x, p" not in section.rows[0][2]
    label, one, two = section.rows[1]
    assert label == "prose @ 16, per word"
    words = len(PROSE.split())
    tokens = len(tiny.tokenizer()(PROSE)["input_ids"])
    assert float(one) == pytest.approx(
        dense.perplexities[0].score.perplexity ** (tokens / words), rel=1e-3
    )
    assert two != one


def test_the_table(pair: tuple[Any, Any]) -> None:
    found = {section.title: section for section in beside.sections(pair)}
    assert list(found) == ["Size", "Perplexity", "Continuations", "Tasks"]
    assert found["Size"].header == ("", "dense", "noisy")
    row = found["Tasks"].rows[0]
    assert row == ("piqa, acc, n = 4", "0.7500 ± 0.1000", "0.2500 ± 0.1000 (-0.5000, p = 0.500)")
    assert "p: of so large a difference from dense by chance" in found["Tasks"].note
    content = beside.as_json(pair)
    assert [each["model"]["name"] for each in content["models"]] == ["dense", "noisy"]
    assert [each["figure"] for each in content["differences"]] == [
        "perplexity",
        "acc",
        "repeated 4-grams",
    ]
