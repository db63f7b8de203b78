"""The page: whole in itself, escaped, and its figures are those of the plan and the scores."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import CheckpointError, CriterionError
from fxprune.importance.scores import Scores
from fxprune.inspect import page as html
from fxprune.inspect.page import bars, curves, heat
from fxprune.inspect.page.elements import element
from fxprune.inspect.page.runs import Pruned, Recovered, Runs, read_runs
from fxprune.inspect.page.widths import Width, widths
from fxprune.measure.report import Measurement
from fxprune.recover.history import Evaluation, History, Step
from tests.hf import tiny
from tests.inspect.page.reading import SVG, check_alone, parsed, pictures, titles, words
from tests.models import ResidualConvNet

HOSTILE = '<script>alert(1)</script>&"\x00'


@pytest.fixture(scope="module")
def graph() -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(tiny.llama(num_hidden_layers=3)))


@pytest.fixture(scope="module")
def plan(graph: fxprune.DependencyGraph) -> fxprune.Plan:
    kept = {f"model.layers.{i}.mlp:units": range(i + 5, 40) for i in range(3)}
    return fxprune.Plan.of(graph, {**kept, "model.layers.1.self_attn:heads": [1]})


@pytest.fixture(scope="module")
def scores(graph: fxprune.DependencyGraph) -> Scores:
    torch.manual_seed(0)
    kinds = ("mlp", "attention", "head_dim")
    chosen = [group for group in graph.groups if group.kind in kinds]
    return Scores({group.name: torch.rand(group.size) for group in chosen}, "Random(seed=0)")


def test_a_model_alone(graph: fxprune.DependencyGraph, tmp_path: Path) -> None:
    page = html.write(graph, tmp_path / "m.html", name="tiny").read_text()
    check_alone(page)
    parser = parsed(page)
    assert {"h1", "h2", "table", "th", "caption", "svg"} <= parser.seen
    parameters = sum(p.numel() for p in graph.traced.module.parameters())
    assert f">{parameters:,}<" in page
    assert "tiny: LlamaForCausalLM" in page
    assert "prefers-color-scheme: dark" in page
    assert "embedding rows are looked up by index" in page
    for picture in pictures(page):
        assert picture.attrib["role"] == "img"
        assert picture[0].tag == f"{SVG}title"
        assert picture[0].text


def test_the_graph_has_a_box_for_every_group(
    graph: fxprune.DependencyGraph, tmp_path: Path
) -> None:
    page = html.write(graph, tmp_path / "m.html").read_text()
    picture = pictures(page)[0]
    told = "\n".join(titles(picture))
    for group in (*graph.groups, *graph.frozen):
        assert group.name in told.split("\n")
    lines = words(picture)
    assert "model.layers.[0-2].mlp:units" in lines  # three layers alike are one box
    assert "\u2192 gate_proj, up_proj" in lines
    assert "\u2190 down_proj" in lines


@pytest.mark.parametrize("model", ["llama", "convolutions"])
def test_text_stays_in_its_box(model: str, graph: fxprune.DependencyGraph, tmp_path: Path) -> None:
    if model == "convolutions":
        image = torch.randn(2, 3, 16, 16)
        graph = fxprune.discover(fxprune.trace(ResidualConvNet().eval(), (image,)))
    page = html.write(graph, tmp_path / "m.html").read_text()
    assert ("1 x 3 x 16 x 16" in page) == (model == "convolutions")  # what the MACs are for
    picture = pictures(page)[0]
    found = [each for each in picture.iter(f"{SVG}g") if each.find(f"{SVG}rect") is not None]
    assert len(found) > 5
    for box in found:
        rect = box.find(f"{SVG}rect")
        assert rect is not None
        x, y, wide, high = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        for text in box.iter(f"{SVG}text"):
            left, base = float(text.attrib["x"]), float(text.attrib["y"])
            assert x < left
            assert left + 6.9 * len("".join(text.itertext())) <= x + wide
            assert y < base - 8
            assert base + 3 <= y + high
        assert x >= 0
        assert x + wide <= float(picture.attrib["width"])
        assert y + high <= float(picture.attrib["height"])


def test_names_are_escaped(graph: fxprune.DependencyGraph, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&", nn.Linear(5, 12))
            self.add_module("out", nn.Linear(12, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.get_submodule("<b>&")(x)))

    odd = fxprune.discover(fxprune.trace(Odd(), (torch.randn(2, 5),)))
    report = Pruned(Measurement(2, perplexity=3.0), Measurement(1, perplexity=4.0), (HOSTILE,))
    learnt = Recovered({HOSTILE: 2.0}, {HOSTILE: 1.0}, None, (HOSTILE,))
    runs = Runs(report, learnt)
    held = Scores({group.name: torch.ones(group.size) for group in odd.groups}, HOSTILE)
    path = html.write(odd, tmp_path / "m.html", name=HOSTILE, runs=runs, scores=held)
    page = path.read_text()
    check_alone(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page
    assert "&lt;b&gt;&amp;" in page
    assert "\x00" not in page
    assert "b" not in parsed(page).seen
    assert pictures(page)


def test_widths_are_those_of_the_plan(
    graph: fxprune.DependencyGraph, plan: fxprune.Plan, tmp_path: Path
) -> None:
    small = fxprune.rewrite(graph.traced, plan)
    smaller = fxprune.discover(fxprune.trace(small, kwargs=graph.traced.kwargs))
    found = {row.name: row for row in widths(smaller, plan)}
    for group in graph.groups:
        row = found[group.name]
        kept = plan.kept.get(group.name, range(group.size))
        assert (row.kind, row.before, row.after) == (group.kind, group.size, len(kept))
    page = html.write(smaller, tmp_path / "m.html", plan=plan).read_text()
    (mlp,) = (p for p in pictures(page) if "Units of mlp:units" in titles(p)[0])
    assert titles(mlp)[1:] == [f"layer {i}: 40 to {35 - i} units" for i in range(3)]
    heights = {
        look: [float(r.attrib["height"]) for r in mlp.iter(f"{SVG}rect") if r.get("class") == look]
        for look in ("before", "after")
    }
    shares = [a / b for a, b in zip(heights["after"], heights["before"], strict=True)]
    assert shares == pytest.approx([35 / 40, 34 / 40, 33 / 40], abs=0.005)
    (table,) = (t for t in parsed(page).tables if t[0][0] == "layer" and "mlp:units" in t[0])
    column = table[0].index("mlp:units")
    assert [row[column] for row in table[1:]] == [f"40 \u2192 {35 - i}" for i in range(3)]
    heads = table[0].index("self_attn:heads")
    assert [row[heads] for row in table[1:]] == ["2", "2 \u2192 1", "2"]
    assert f">{plan.parameters_before:,}<" in page


def test_removed_layers_are_marked() -> None:
    rows = {i: Width(f"layers.{i}.mlp:units", "mlp", ("layers", i), 8, 6) for i in (0, 2)}
    picture = bars.layers(("layers", "mlp:units"), rows, {1: ["layers.1:block"]})
    said = [title.text for title in picture.iter("title")]
    assert said[1:] == [
        "layer 0: 8 to 6 units",
        "layer 1: layers.1:block removed",
        "layer 2: 8 to 6 units",
    ]


def test_heat_map_shows_the_means(
    graph: fxprune.DependencyGraph, scores: Scores, tmp_path: Path
) -> None:
    page = html.write(graph, tmp_path / "m.html", scores=scores).read_text()
    assert "criterion: Random(seed=0)" in page
    assert "over the largest mean of that kind" in page
    (picture,) = (p for p in pictures(page) if titles(p)[0].startswith("Mean score"))
    cells = {}
    for cell in picture.iter(f"{SVG}g"):
        title, rect = cell.find(f"{SVG}title"), cell.find(f"{SVG}rect")
        assert title is not None
        assert title.text is not None
        assert rect is not None
        place, _, value = title.text.partition(": mean score ")
        cells[place] = (float(value), float(rect.attrib["fill-opacity"]))
    units = {"mlp": "mlp:units", "attention": "self_attn:heads", "head_dim": "self_attn:v_dim"}
    assert set(cells) == {f"layer {i}, {kind}" for i in range(3) for kind in units}
    for kind, name in units.items():
        means = [float(scores[f"model.layers.{i}.{name}"].mean()) for i in range(3)]
        shown = [cells[f"layer {i}, {kind}"] for i in range(3)]
        assert [value for value, _ in shown] == pytest.approx(means, rel=1e-5)
        assert [share for _, share in shown] == pytest.approx(
            [mean / max(means) for mean in means], abs=0.001
        )


def test_several_groups_of_a_kind_are_one_cell() -> None:
    names = ("layers.0.a:units", "layers.0.b:units")
    rows = [Width(name, "mlp", ("layers", 0), 2, 2) for name in names]
    held = Scores({names[0]: torch.tensor([1.0, 2.0]), names[1]: torch.tensor([6.0])})
    assert heat.means(held, rows) == {"layers": {"mlp": {0: 3.0}}}


def test_scores_of_another_model_are_refused(graph: fxprune.DependencyGraph) -> None:
    rows = widths(graph)
    with pytest.raises(CriterionError, match="no group of theirs"):
        heat.means(Scores({"blocks.0.ffn:units": torch.ones(3)}), rows)
    with pytest.raises(CriterionError, match=r"more units in model\.layers\.0\.mlp:units"):
        heat.means(Scores({"model.layers.0.mlp:units": torch.ones(41)}), rows)


def test_scores_that_are_not_finite() -> None:
    found = {"layers": {"mlp": {0: math.nan, 1: -2.0, 2: 1.0}}}
    (picture,) = heat.maps(found)
    shares = [rect.attrib["fill-opacity"] for rect in picture.iter("rect")]
    assert shares == ["0.000", "0.000", "0.500"]


def test_before_and_after(graph: fxprune.DependencyGraph, tmp_path: Path) -> None:
    before = Measurement(15504, 2_000_000, 62_016, 20.0, 0.01)
    after = dataclasses.replace(before, parameters=12000, perplexity=25.0, latency=0.005)
    report = Pruned(before, after, ("latency: in turns",))
    page = html.write(graph, tmp_path / "m.html", runs=Runs(report)).read_text()
    assert ["perplexity", "20.00", "25.00", "+25.0 %"] in parsed(page).tables[0]
    assert "latency: in turns" in page
    told = [titles(picture)[0] for picture in pictures(page)]
    assert "perplexity: before 20.00, after 25.00" in told
    latency = pictures(page)[told.index("latency: before 10.0 ms, after 5.0 ms")]
    wide = [float(rect.attrib["width"]) for rect in latency.iter(f"{SVG}rect")]
    assert wide[1] == wide[0] / 2


def test_losses(graph: fxprune.DependencyGraph, tmp_path: Path) -> None:
    steps = tuple(Step(i, 4.0 - i / 2, 1e-3, 1.0, 10, 0.1) for i in (1, 2, 3))
    history = History(steps, (Evaluation(0, 5.0), Evaluation(3, 3.0)))
    picture = curves.losses(history)
    points = [c.find("title") for c in picture.iter("circle")]
    assert [p.text for p in points if p is not None] == [
        "step 0: validation loss 5.0000",
        "step 3: validation loss 3.0000",
    ]
    one, other = picture.iter("circle")
    assert float(one.attrib["cy"]) < float(other.attrib["cy"])  # higher is up
    (tmp_path / "log.json").write_text(json.dumps(dataclasses.asdict(history)))
    learnt = Recovered({"text": 30.0}, {"text": 24.0}, tmp_path / "log.json", ("LoRA",))
    page = html.write(graph, tmp_path / "m.html", runs=Runs(None, learnt)).read_text()
    check_alone(page)
    told = [titles(each)[0] for each in pictures(page)]
    assert told[:2] == [
        "perplexity: before 30.00, after 24.00",
        "Loss per token in nats, by step: training, validation",
    ]
    assert History.load(tmp_path / "log.json") == history


def test_reports_that_are_damaged(tmp_path: Path) -> None:
    assert read_runs(tmp_path) == Runs()
    file = tmp_path / "report.json"
    for content in ("{", "[]", '{"before": {"parameters": "many"}, "after": {}}', "{}"):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=r"report\.json"):
            read_runs(tmp_path)
    file.write_text('{"perplexity": {"before": 1}}')
    with pytest.raises(CheckpointError, match="not a report of fxprune recover"):
        read_runs(tmp_path)


def test_elements() -> None:
    made = element("p", "a", None, element("b", "c"), "d", "e", class_="x", stroke_width=1.25, y=3)
    assert made.attrib == {"class": "x", "stroke-width": "1.2", "y": "3"}
    assert "".join(made.itertext()) == "acde"
