"""``fxprune inspect A --against B``: what one model lost that another has."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune import Plan
from fxprune.errors import PlanError
from fxprune.inspect.blank import open_blank
from fxprune.inspect.lost import Lost, lost
from tests.command_line import run_command
from tests.hf import tiny

LAYERS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; pruned a little; pruned more, of the same; pruned again, of what was pruned."""
    place = tmp_path_factory.mktemp("lost")
    model: Any = tiny.llama(num_hidden_layers=LAYERS)
    model.save_pretrained(place / "dense")
    traced = fxprune.trace(model)
    shorter = fxprune.bypass(traced, ["model.layers.1:block"])
    places = [number for number in range(LAYERS) if number != 1]
    few = {f"model.layers.{n}.mlp:units": range(5, 40) for n in range(LAYERS)}
    many = {f"model.layers.{n}.mlp:units": range(10, 40) for n in places}
    many |= {f"model.layers.{n}.self_attn:heads": (1,) for n in places}
    little = Plan.of(fxprune.discover(traced), {n: tuple(u) for n, u in few.items()})
    more = Plan.of(fxprune.discover(shorter), {n: tuple(u) for n, u in many.items()})
    for name, plan in (("little", little), ("more", more)):
        fxprune.save(fxprune.shrink(model, plan), place / name, plan=plan)
    again = fxprune.load(place / "little")
    graph = fxprune.discover(fxprune.trace(again))
    last = Plan.of(graph, {"model.layers.0.mlp:units": tuple(range(7))})
    fxprune.save(fxprune.shrink(again, last), place / "again", plan=last)  # type: ignore[arg-type]
    return place


def between(folders: Path, one: str, other: str) -> Lost:
    return lost(open_blank(folders / one), open_blank(folders / other))


def numbers(folders: Path, name: str) -> int:
    return sum(p.numel() for p in open_blank(folders / name).traced.module.parameters())


def test_against_the_original(folders: Path) -> None:
    found = between(folders, "dense", "more")
    assert found.parameters == (numbers(folders, "dense"), numbers(folders, "more"))
    assert found.removed == ("model.layers.1:block",)
    lines = list(found.lines())
    assert lines[0].startswith(f"parameters: {found.parameters[0]:,} -> {found.parameters[1]:,} (-")
    assert lines[1] == "removed whole: model.layers.1:block"
    assert set(lines[2:]) == {
        "MLP units: 120 -> 90 in 3 groups",
        "key/value heads: 6 -> 3 in 3 groups",
    }


def test_against_what_was_pruned_less_of_the_same(folders: Path) -> None:
    found = between(folders, "little", "more")
    assert found.parameters == (numbers(folders, "little"), numbers(folders, "more"))
    assert found.removed == ("model.layers.1:block",)
    mlp = {g.name: (g.size, g.kept) for g in found.groups if g.kind == "mlp"}
    assert mlp == {f"model.layers.{n}.mlp:units": (35, 30) for n in (0, 2, 3)}
    heads = {g.name: (g.size, g.kept) for g in found.groups if g.kind == "attention"}
    assert heads == {f"model.layers.{n}.self_attn:heads": (2, 1) for n in (0, 2, 3)}
    assert list(between(folders, "more", "more").lines())[1:] == ["nothing was lost"]


def test_against_what_it_was_pruned_again_of(folders: Path) -> None:
    found = between(folders, "little", "again")
    assert [(g.name, g.size, g.kept) for g in found.groups] == [("model.layers.0.mlp:units", 35, 7)]
    assert found.parameters == (numbers(folders, "little"), numbers(folders, "again"))


def test_models_that_are_not_of_one_another(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"little keeps units of .* that more lost"):
        between(folders, "more", "little")
    with pytest.raises(PlanError, match=r"dense holds no plan, which says what"):
        between(folders, "more", "dense")
    tiny.llama(num_hidden_layers=2).save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError, match=r"more was not made of other: .*another model: "):
        lost(open_blank(tmp_path / "other"), open_blank(folders / "more"))


def test_the_command(
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = functools.partial(run_command, monkeypatch, capsys, "inspect", folders / "dense")
    against = ["--against", folders / "more"]
    status, shown, _ = run(*against, "--json", tmp_path / "lost.json")
    assert not status
    assert "MLP units: 120 -> 90 in 3 groups" in shown
    assert "model.layers 0, 2 to 3" in shown
    assert "30 of 40" in shown
    content = json.loads((tmp_path / "lost.json").read_text())
    assert content["removed"] == ["model.layers.1:block"]
    assert content["parameters"]["after"] == numbers(folders, "more")
    status, _, words = run(*against, "--all")
    assert status
    assert "--against goes alone" in words
