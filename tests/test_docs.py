"""The pages are true: examples run, generated pages are current, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.axes import registry
from tests import reference_page
from tests.zoo import ZOO, built

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_readme_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """All of its Python, in order, as one program."""
    ids = torch.randint(101, (4, 13))
    names: dict[str, Any] = {
        "model": built("llama", "sdpa"),
        "ids": ids,
        "calibration": [{"input_ids": ids}],
    }
    for source in blocks(ROOT / "README.md", "python"):
        exec(compile(source, "README.md", "exec"), names)
    assert isinstance(names["small"], torch.fx.GraphModule)
    assert "model.layers.0.mlp:units mlp 40" in capsys.readouterr().out


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

    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    assert all("unknown op aten.logcumsumexp" in str(group.reason) for group in hidden())
    (source,) = blocks(ROOT / "docs" / "contributing.md", "python")
    exec(compile(source, "contributing.md", "exec"), {})
    (units,) = hidden()
    assert units.reason is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_reference_is_current() -> None:
    assert reference_page.page() == reference_page.PAGE.read_text(), (
        "run: python -m tests.reference_page"
    )


def test_conformance_page_lists_the_zoo() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (eager|sdpa) \|", text, re.MULTILINE)
    assert rows == [(entry.name, backend) for entry in ZOO for backend in entry.backends], (
        "run: python -m tests.conformance_table"
    )


def test_version() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{fxprune.__version__}"' in text
