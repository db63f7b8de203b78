"""Tests of tracing itself: nothing is remembered from one to the next."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def _captured_anew(captured_anew: None) -> None:
    pass
