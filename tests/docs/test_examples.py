"""Every fenced block on the pages is run, or listed in docs/commands.md with when it last was."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxprune.data import draw
from fxprune.ops import op
from fxprune.select.budgets import COSTS
from tests.command_line import run_command
from tests.docs.blocks import PAGES, blocks, listed, name_of
from tests.docs.material import NEEDS, STANDS_FOR, Needs

RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.fixture
def _tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example registers is gone behind it."""
    monkeypatch.setattr(op, "OPS", dict(op.OPS))
    known = dict(COSTS)
    yield
    COSTS.clear()
    COSTS.update(known)


@pytest.mark.page
@pytest.mark.usefixtures("_tables")
@pytest.mark.filterwarnings(
    "ignore:.*removed in v6:FutureWarning",  # PEFT's
    "ignore:Model has .tie_word_embeddings=True.:UserWarning",
    "ignore:recovery made the validation loss no better",  # of random models
    "ignore:.*torch.jit:DeprecationWarning",  # torch.compile's own
    "ignore:.*LeafSpec:FutureWarning",  # torch's, of decomposing
    "ignore:.*the model reads the numbers in",  # which a page shows
)
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its Python as one program, its commands between, all in one folder."""
    name = name_of(page)
    needs = NEEDS.get(name, Needs())
    for make in needs.files:
        make(tmp_path)
    names = needs.names()
    printed = ""
    monkeypatch.chdir(tmp_path)
    # A model of two layers learns nothing from more.
    monkeypatch.setattr(draw, "MANY", dict.fromkeys(draw.MANY, 8))
    for block in blocks(page):
        if block.runs and block.language == "python":
            exec(compile(block.source, f"{name} from line {block.line}", "exec"), names)
            printed += capsys.readouterr().out
        for command in block.commands if block.runs and block.language == "sh" else ():
            program, *words = shlex.split(command)
            assert program == "fxprune", command
            words = [STANDS_FOR.get(word, word) for word in words]
            status, _, errors = run_command(monkeypatch, capsys, *words)
            assert status == 0, f"{command}\n{errors}"
    assert needs.prints in printed


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_run_or_shown(page: Path) -> None:
    """Commands and programs are ``sh`` and ``python``; ``text`` is what they print."""
    for block in blocks(page):
        assert block.language in ("python", "sh", "text"), f"{name_of(page)} line {block.line}"
        assert block.mark != "fast" or block.language == "sh", f"line {block.line}"
        assert block.mark != "slow" or block.language == "python", f"line {block.line}"


def test_what_is_not_run_is_listed() -> None:
    """A command that runs on one page need not run on another."""
    every = [(name_of(page), block) for page in PAGES for block in blocks(page)]
    commands = {(name, each) for name, block in every for each in block.commands}
    run = {each for _, block in every if block.runs for each in block.commands}
    missing = {key for key in commands if key[1] not in run} - listed().keys()
    missing = {key for key in missing if key[0] != "docs/benchmarks.md"}  # says when, by itself
    assert not missing, "docs/commands.md: add them, with when they were last run"
    assert listed().keys() <= commands, "docs/commands.md lists what is on no page"
