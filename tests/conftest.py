"""What every test needs: no network, one thread, fixed seeds."""

from __future__ import annotations

import os

# Read by libraries when they are imported, so set before any of them is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from typing import Any

import hypothesis
import pytest
import torch

# The same examples on every run and every machine: a failure seen once is seen again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    # The models are tiny and the suite runs in several processes: more threads only get in the way.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test as soon as a model is loaded."""
    from fxprune.hf.open import models

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(models, "load_model", refuse)
