"""What every test needs: no network, one thread, fixed seeds."""

from __future__ import annotations

import gc
import logging
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

# The same examples on every run and every machine: a failure seen once is seen again.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


# Files that run in one process, by how their names begin: what takes long there is then done once.
TOGETHER = {
    "models of the zoo are traced": (
        "tests/branches/",
        "tests/compensate/",
        "tests/costs/",
        "tests/hf/shrink/test_shrink.py",
        "tests/importance/",
        "tests/proof/test_mutants.py",
        "tests/test_conformance.py",
        "tests/test_decomposed.py",
    ),
    "lm-eval is imported": (
        "tests/cli/test_evaluate.py",
        "tests/measure/test_harness.py",
        "tests/measure/test_tasks.py",
    ),
    "a deep T5 is traced": ("tests/depth/test_search.py", "tests/select/test_depth.py"),
    "torch compiles": ("tests/hf/test_compose.py", "tests/rewrite/test_rewrite.py"),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile`` takes some files for one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((why for why, names in TOGETHER.items() if file.startswith(names)), file)

    return Together(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--capture-all", action="store_true", help="trace anew what was traced before")


def pytest_configure(config: pytest.Config) -> None:
    # The models are tiny and the suite runs in several processes: more threads only get in the way.
    torch.set_num_threads(1)
    # torch writes a record of each symbol for whoever listens, and pytest listens to every logger
    # that does not propagate.
    records = logging.getLogger("torch.__trace")
    records.handlers.clear()
    records.propagate = True
    # A trace makes objects by the million that all stay: looking through them takes a tenth of it.
    gc.set_threshold(50_000, 20, 20)
    # The process that hands out the tests needs none of this, and importing it takes a while.
    if not config.getoption("numprocesses", None):
        from fxprune.trace import export
        from tests.traces import MEMORY

        MEMORY.on = not config.getoption("--capture-all")
        export._traced = MEMORY


def _captured_anew() -> Iterator[None]:
    from tests.traces import MEMORY

    before, MEMORY.on = MEMORY.on, False
    yield
    MEMORY.on = before


# Whatever a module, or one test, traces is captured, and nodes know the lines that they come from.
captured_anew = pytest.fixture(scope="module")(_captured_anew)
with_lines = pytest.fixture(_captured_anew)


@pytest.fixture(autouse=True, scope="module")
def _what_is_kept() -> None:
    """Models and traces that stay are no garbage, and are not looked through again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test as soon as a model is loaded."""
    from fxprune.hf.folder import in_pieces
    from fxprune.hf.open import load, models

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    for module in (models, load, in_pieces):
        monkeypatch.setattr(module, "load_model", refuse)
