"""What every test needs: no network, one thread, fixed seeds."""

from __future__ import annotations

import os

# Read by libraries when they are imported, so set before any of them is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

from fxprune.trace import export as tracing
from tests.traces import Memory

# The same examples on every run and every machine: a failure seen once is seen again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")

TRACES = Memory(tracing._traced)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--capture-all", action="store_true", help="trace anew what was traced before")


def pytest_configure(config: pytest.Config) -> None:
    # The models are tiny and the suite runs in several processes: more threads only get in the way.
    torch.set_num_threads(1)
    if not config.getoption("--capture-all"):
        tracing._traced = TRACES


@pytest.fixture(scope="module")
def captured_anew() -> Iterator[None]:
    """Whatever is traced is captured."""
    before, TRACES.on = TRACES.on, False
    yield
    TRACES.on = before


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test as soon as a model is loaded."""
    from fxprune.hf import models

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(models, "load_model", refuse)
