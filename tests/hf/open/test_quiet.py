"""Libraries' advice is kept back for a while, and comes again after."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import transformers

from fxprune.hf.open.quiet import hushed


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    library = logging.getLogger(transformers.__name__)
    library.addHandler(caplog.handler)
    yield caplog
    library.removeHandler(caplog.handler)


def test_advice_is_kept_back_and_errors_are_not(said: pytest.LogCaptureFixture) -> None:
    part, other = logging.getLogger("transformers.some.part"), logging.getLogger("somebody.else")
    level = logging.getLogger("transformers").level
    with hushed():
        part.warning("advice")
        with hushed():
            part.warning("advice")
        part.warning("advice")
        part.error("an error")
        other.warning("theirs")
    part.warning("again")
    assert [*dict.fromkeys(said.messages)] == ["an error", "theirs", "again"]
    assert logging.getLogger("transformers").level == level
