"""Repetition in what a model writes."""

from __future__ import annotations

import pytest
import torch

from fxprune.measure.continuations import continuations, distinct
from tests.hf import tiny


def test_distinct_by_hand() -> None:
    assert distinct([[1, 2, 1, 2, 1]], 2) == 2 / 4  # 12, 21 of 12 21 12 21
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4
    assert distinct([[1, 1, 1, 1], [1]], 1) == 1 / 5
    assert distinct([[1, 2]], 3) == 1.0


def test_of_a_model() -> None:
    """Against what ``generate`` writes, row by row, counted by hand."""
    model = tiny.llama().eval()
    prompts = torch.arange(15).view(3, 5) % tiny.VOCABULARY
    found = continuations(model, "prose", prompts, 12, digest="d", batch_size=2)
    rows = []
    for row in prompts:
        out = model.generate(
            row[None],
            attention_mask=torch.ones(1, 5),
            min_new_tokens=12,
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        rows.append(out[0, 5:].tolist())
    for share, row in zip(found.repeated, rows, strict=True):
        fours = [tuple(row[i : i + 4]) for i in range(9)]
        assert share == pytest.approx(1 - len(set(fours)) / 9)
    assert found.distinct[1] == len({token for row in rows for token in row}) / 36
    assert (found.prompt, found.new) == (5, 12)


def test_one_token_again_and_again() -> None:
    model = tiny.llama().eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # the first token is taken whatever came before
    found = continuations(model, "prose", torch.ones(2, 3, dtype=torch.long), 10, digest="d")
    assert found.repeated == pytest.approx([6 / 7, 6 / 7])
    assert found.distinct == {1: 1 / 20, 2: 1 / 18, 3: 1 / 16}
