"""The pages are true: generated ones are current, links lead somewhere. Examples: tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.ops import op
from tests import reference_page
from tests.docs.blocks import PAGES, ROOT, blocks, name_of


class Running(torch.nn.Module):
    """A perceptron that sums up over its batch, with an op that fxprune has no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(5, 12), torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.logcumsumexp(self.up(x), 0))


def test_the_example_of_a_rule_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> list[fxprune.Group]:
        graph = fxprune.discover(fxprune.trace(Running(), (torch.randn(4, 5),)))
        return [group for group in (*graph.groups, *graph.frozen) if group.size == 12]

    monkeypatch.setattr(op, "OPS", dict(op.OPS))
    assert all("unknown op aten.logcumsumexp" in str(group.reason) for group in hidden())
    first = blocks(ROOT / "docs" / "how-to" / "op-rule.md")[0]
    exec(compile(first.source, "op-rule.md", "exec"), {})
    (units,) = hidden()
    assert units.reason is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_reference_is_current() -> None:
    assert reference_page.page() == reference_page.PAGE.read_text(), (
        "run: python -m tests.reference_page"
    )


def test_version() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{fxprune.__version__}"' in text
