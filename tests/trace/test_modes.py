"""What holds for a while only."""

from __future__ import annotations

import torch

from fxprune.trace.modes import seeded


def test_random_numbers_of_the_caller_go_on() -> None:
    torch.manual_seed(5)
    expected = torch.rand(6)
    torch.manual_seed(5)
    first = torch.rand(2)
    drawn = []
    for _ in range(2):
        with seeded(1):
            drawn.append(torch.rand(3))
    torch.testing.assert_close(torch.cat([first, torch.rand(4)]), expected, rtol=0, atol=0)
    assert torch.equal(*drawn)


def test_nor_is_a_gpu_seeded_that_is_not_in_use_yet() -> None:
    waiting = len(torch.cuda._queued_calls)
    with seeded():
        pass
    if not torch.cuda.is_initialized():
        assert len(torch.cuda._queued_calls) == waiting
