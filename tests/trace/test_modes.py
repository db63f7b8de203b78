"""What holds for a while only."""

from __future__ import annotations

import pytest
import torch

from fxprune.trace import modes
from fxprune.trace.modes import quick_products, seeded


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


def test_quick_products_are_those_of_float32() -> None:
    a, b = torch.randn(2, 300, 400, generator=torch.Generator().manual_seed(3))
    with quick_products():
        found = a @ b.T  # of a size that oneDNN takes
    torch.testing.assert_close(found.double(), a.double() @ b.T.double(), rtol=1e-5, atol=1e-4)


def test_whether_they_are_does_not_hang_on_defaults() -> None:
    expected = modes._exact.__wrapped__()
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert modes._exact.__wrapped__() == expected
    torch.set_default_dtype(torch.float16)
    try:
        assert modes._exact.__wrapped__() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_quick_products_where_they_are_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_exact", lambda: False)
    with quick_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("chosen", ["none", "ieee", "bf16"])
def test_a_chosen_precision_stays(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_exact", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    matmul.fp32_precision = chosen
    try:
        with quick_products():
            assert matmul.fp32_precision == ("bf16" if chosen == "none" else chosen)
        assert matmul.fp32_precision == chosen
    finally:
        matmul.fp32_precision = "none"
