"""Statistics against numpy on all the tokens at once."""

from __future__ import annotations

import math

import numpy as np
import torch

from fxprune.importance.statistics import Statistics, measure, merge


def merged(parts: list[np.ndarray]) -> Statistics:
    total = measure(torch.from_numpy(parts[0]))
    for part in parts[1:]:
        total = merge(total, measure(torch.from_numpy(part)))
    return total.cpu()


def test_merged_batches_equal_all_tokens() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(2, 3, (n, 5)).astype(np.float32) for n in (1, 7, 2, 30)]
    whole = np.concatenate(parts).astype(np.float64)
    found = merged(parts)
    assert found.count == 40
    np.testing.assert_allclose(found.mean.numpy(), whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance.numpy(), whole.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(found.squares.numpy(), (whole**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.absolute.numpy(), abs(whole).sum(0), rtol=1e-5)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.normal(0, 0.5, (50, 3)) + 3000).astype(np.float32) for _ in range(4)]
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(merged(parts).variance.numpy(), whole.var(0, ddof=1), rtol=1e-3)


def test_one_token_has_no_variance() -> None:
    found = measure(torch.ones(1, 2, dtype=torch.bfloat16))
    assert found.mean.tolist() == [1, 1]
    assert all(math.isnan(v) for v in found.variance.tolist())
