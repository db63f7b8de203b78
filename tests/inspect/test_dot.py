"""Pictures of the groups: they open in Graphviz, show what they should and stay small."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune import bypass, discover, trace
from fxprune.errors import CheckpointError, GroupError
from fxprune.groups.dependency import DependencyGraph
from fxprune.groups.parameters import count_parameters
from fxprune.inspect.drawing.canvas import Canvas, Markup, escape, quote, wrapped
from fxprune.inspect.drawing.fold import ranges
from fxprune.inspect.drawing.words import reasons
from tests.zoo import BY_NAME, built

LAYERS = 30
VIEWS: dict[str, dict[str, Any]] = {
    "neurons": {},
    "collapsed": {"collapse": True},
    "layer": {"layer": 1},
    "layer collapsed": {"layer": 1, "collapse": True},
}


class Block(nn.Module):
    """Attention and an MLP, in few nodes."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(36)
        self.qkv, self.out = nn.Linear(36, 3 * 4 * 8), nn.Linear(4 * 8, 36)
        self.up, self.down = nn.Linear(36, units), nn.Linear(units, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.view(batch, length, 4, 8).transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(x)))


class Deep(nn.Module):
    """As many layers as a real model has, of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 36)
        self.layers = nn.ModuleList(Block(40 + i) for i in range(LAYERS))
        self.head = nn.Linear(36, 101)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Odd(nn.Module):
    """Module names that mean something in DOT, in HTML or to an f-string."""

    names = ("it's <b> & {x|y}", "\u00e9 #1; -> [0]")

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.add_module(self.names[0], nn.Linear(5, 7))
        self.inner.add_module(self.names[1], nn.Linear(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.inner.children()
        return second(first(x).relu())


def of_zoo(name: str) -> DependencyGraph:
    args, kwargs = BY_NAME[name].example()
    return discover(trace(built(name, "eager"), args, kwargs))


@pytest.fixture(scope="module")
def llama() -> DependencyGraph:
    return of_zoo("llama")


@pytest.fixture(scope="module")
def deep() -> DependencyGraph:
    with torch.device("meta"):
        model = Deep()
        return discover(trace(model, (torch.zeros(5, 13, dtype=torch.long),)))


@pytest.fixture(scope="module")
def odd() -> DependencyGraph:
    return discover(trace(Odd(), (torch.randn(2, 5),)))


def rendered(path: Path) -> str:
    """The picture as SVG, or the DOT text where Graphviz is not installed."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("digraph ")
    assert text.count("{") >= text.count("subgraph") + 1
    program = shutil.which("dot")
    if program is None:
        return text
    done = subprocess.run(
        [program, "-Tsvg", str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert not done.stderr, done.stderr
    return done.stdout


def size_of(svg: str) -> tuple[int, int]:
    found = re.search(r'<svg width="(\d+)pt" height="(\d+)pt"', svg)
    assert found is not None
    return int(found.group(1)), int(found.group(2))


@pytest.mark.parametrize("view", VIEWS)
def test_opens_in_graphviz(llama: DependencyGraph, tmp_path: Path, view: str) -> None:
    path = llama.to_dot(tmp_path / "llama.dot", **VIEWS[view])
    picture = rendered(path)
    assert "LlamaForCausalLM" in picture
    assert "legend" in picture
    assert [p.name for p in tmp_path.iterdir()] == ["llama.dot"], "a temporary file is left over"


@pytest.mark.parametrize("name", ["resnet", "t5", "perceptron"])
def test_other_architectures_open(name: str, tmp_path: Path) -> None:
    graph = of_zoo(name)
    for collapse in (False, True):
        picture = rendered(graph.to_dot(tmp_path / "x.dot", collapse=collapse))
        assert graph.groups[0].name in picture


def test_a_model_without_groups(tmp_path: Path) -> None:
    graph = discover(trace(nn.ReLU(), (torch.randn(2, 5),)))
    for collapse in (False, True):
        assert "0 groups" in rendered(graph.to_dot(tmp_path / "x.dot", collapse=collapse))


def test_every_neuron_set_is_drawn(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot").read_text()
    for group in (*llama.groups, *llama.frozen):
        assert f'TOOLTIP="{group.name}' in text
    for value, _ in llama.network:
        tensor = llama.network.nodes[value, _]["tensor"]
        assert re.search(rf"\b{re.escape(tensor or value)}\b", text), value


def test_every_group_is_in_the_collapsed_picture(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot", collapse=True).read_text()
    text = re.sub(r"<BR/>", "", text)
    for group in (*llama.groups, *llama.frozen):
        assert re.sub(r"layers\.\d", "layers.[0-1]", group.name) in text
    mlp = llama["model.layers.0.mlp:units"]
    carried = sum(llama.traced.tensors[name].numel() for name in mlp.parameters)
    assert f"{mlp.size} units, 3 sites, {carried:,} parameters each" in text
    assert "gate_proj, up_proj, down_proj" in text


def test_fused_projections_carry_only_their_part(deep: DependencyGraph, tmp_path: Path) -> None:
    text = deep.to_dot(tmp_path / "x.dot", group="layers.0:v_dim", collapse=True).read_text()
    assert f"8 units, 3 sites, {4 * 8 * (36 + 1) + 36 * 4 * 8:,} parameters<" in text


def test_one_layer(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot", layer=1).read_text()
    inside = {g.name for g in llama.groups if g.layer == ("model.layers", 1)}
    assert inside
    for name in inside:
        assert f'TOOLTIP="{name}"' in text
    assert "model.layers.0" not in text
    assert "neighbour" in text
    assert "residual:channels" in text or "model:channels" in text


def test_one_group(llama: DependencyGraph, tmp_path: Path) -> None:
    name = "model.layers.1.mlp:units"
    text = llama.to_dot(tmp_path / "x.dot", group=name).read_text()
    for site in llama[name].sites:
        assert site.tensor in text
    assert "self_attn" not in text
    assert "R2: feeds this alone" in text, "gate and up have another partner each"


def test_edges_follow_their_rules(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot", group="model.layers.1.mlp:units").read_text()
    edges = [line for line in text.splitlines() if " -> " in line]
    product = next(
        n for n, g in llama.network if g == "model.layers.1.mlp:units" and n.startswith("mul")
    )
    into = [line for line in edges if f'-> "{product}"' in line]
    assert len(into) == 2
    for line in into:
        assert 'style="dashed"' in line
        assert 'tooltip="R2, R3"' in line
    weights = [line for line in edges if 'arrowhead="odot"' in line]
    assert len(weights) == 3
    flows = [line for line in edges if 'tooltip="no dependency"' in line]
    assert len(flows) == 3, "two from the stream, one into it"


def test_legend_explains_what_occurs(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot").read_text()
    for word in ("mlp", "attention", "query", "head_dim", "channel", "frozen"):
        assert re.search(rf">{word}<", text), word
    assert ">expert<" not in text
    for rule in ("R1:", "R2:", "R3:", "all to all:"):
        assert rule in text


def test_frozen_groups_say_why(llama: DependencyGraph, tmp_path: Path) -> None:
    assert llama.frozen
    for collapse in (False, True):
        text = llama.to_dot(tmp_path / "x.dot", collapse=collapse).read_text()
        words = re.sub(r"<BR/>", " ", text)
        for group in llama.frozen:
            assert group.reason
            assert " ".join(escape(group.reason).split()) in " ".join(words.split())


def branches_in(text: str) -> str:
    """What the legend says of residual branches, as plain words."""
    (box,) = re.findall(r"<B>residual branches</B>.*", text)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", box)).split())


@pytest.mark.parametrize("collapse", [False, True])
def test_branches_are_in_the_legend(llama: DependencyGraph, tmp_path: Path, collapse: bool) -> None:
    path = llama.to_dot(tmp_path / "x.dot", collapse=collapse)
    assert "model.layers.[0-1] attention, mlp, block" in branches_in(path.read_text())
    assert "residual branches" in rendered(path)


def test_branches_of_one_layer(llama: DependencyGraph, tmp_path: Path) -> None:
    text = llama.to_dot(tmp_path / "x.dot", layer=1).read_text()
    assert "model.layers.1 attention, mlp, block" in branches_in(text)
    text = llama.to_dot(tmp_path / "x.dot", group="residual:channels").read_text()
    assert "residual branches" not in text


def test_branches_outside_of_layers_and_of_models_without(tmp_path: Path) -> None:
    text = of_zoo("resnet").to_dot(tmp_path / "x.dot").read_text()
    assert "plain, depthwise, grouped other, block" in branches_in(text)
    assert "residual branches" not in of_zoo("perceptron").to_dot(tmp_path / "x.dot").read_text()


def test_branches_of_thirty_layers_are_one_line(deep: DependencyGraph, tmp_path: Path) -> None:
    text = deep.to_dot(tmp_path / "x.dot").read_text()
    assert "layers.[0-29] attention, mlp, block" in branches_in(text)


def test_branches_that_are_removed_already(llama: DependencyGraph, tmp_path: Path) -> None:
    removed = ["model.layers.0:mlp", "model.layers.1:block"]
    short = discover(bypass(llama.traced, removed))
    text = short.to_dot(tmp_path / "x.dot", collapse=True).read_text()
    words = branches_in(text)
    assert "model.layers.0 attention, block" in words
    assert "model.layers.0:mlp, model.layers.1:block removed" in words
    assert f"{count_parameters(short):,} parameters; " in text


def test_branches_that_stay_say_why(tmp_path: Path) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = self.layers
            x = first(x)
            term = second(x)
            return x + term, term

    text = discover(trace(Read(), (torch.randn(2, 6),))).to_dot(tmp_path / "x.dot").read_text()
    assert ":mlp stays: its value linear_1 is also used by output" in branches_in(text)


def test_many_frozen_groups_are_folded() -> None:
    @dataclass
    class Frozen:
        name: str
        reason: str

    every: list[Any] = [Frozen(f"g{i}", "the same") for i in range(9)]
    assert reasons(every) == [("g0, g1, g2 and 6 more", "the same")]
    every = [Frozen(f"g{i}", f"reason {i}") for i in range(20)]
    assert len(reasons(every)) == 9
    assert reasons(every)[-1] == ("12 more reasons", "")


def test_deterministic(llama: DependencyGraph, tmp_path: Path) -> None:
    again = of_zoo("llama")
    assert again is not llama
    for options in VIEWS.values():
        texts = [g.to_dot(tmp_path / "x.dot", **options).read_bytes() for g in (llama, again)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("view", VIEWS)
def test_thirty_layers_stay_small(deep: DependencyGraph, tmp_path: Path, view: str) -> None:
    assert len(deep.groups) > 4 * LAYERS
    deep.network  # noqa: B018  # built once, when first asked for
    start = time.perf_counter()
    path = deep.to_dot(tmp_path / "deep.dot", **VIEWS[view])
    assert time.perf_counter() - start < 5
    assert path.stat().st_size < 40_000
    picture = rendered(path)
    if picture.startswith("<?xml"):
        assert max(size_of(picture)) < 3000


def test_layers_alike_are_drawn_once(deep: DependencyGraph, tmp_path: Path) -> None:
    collapsed = deep.to_dot(tmp_path / "x.dot", collapse=True).read_text()
    assert "layers 0-29: 30 alike, drawn once" in collapsed
    assert "layers.[0-29]:units" in collapsed
    assert "40-69 units" in collapsed
    neurons = deep.to_dot(tmp_path / "x.dot").read_text()
    assert "29 layers like 0" in neurons
    assert "layers.17" not in neurons


def test_channels_of_thirty_layers(deep: DependencyGraph, tmp_path: Path) -> None:
    name = next(g.name for g in deep.groups if g.kind == "channel")
    path = deep.to_dot(tmp_path / "x.dot", group=name)
    assert path.stat().st_size < 40_000
    assert "neurons in between, not drawn" in path.read_text()
    rendered(path)


def test_odd_module_names(odd: DependencyGraph, tmp_path: Path) -> None:
    for collapse in (False, True):
        picture = rendered(odd.to_dot(tmp_path / "x.dot", collapse=collapse))
        for name in Odd.names:
            assert name in html.unescape(picture)


@pytest.mark.parametrize(
    "text", ['a"b', "a\\", '\\"', "a\\nb", "line\nother", "\x00\x1b", "<b>&amp;&"]
)
def test_quoting_survives_graphviz(text: str, tmp_path: Path) -> None:
    canvas = Canvas(Markup("title"))
    canvas.node(text, text, shape="box")
    canvas.node(f"{text} markup", Markup(f"<B>{wrapped(text)}</B>"))
    canvas.edge((text, None), (f"{text} markup", None), tooltip=text)
    path = tmp_path / "x.dot"
    path.write_text(canvas.text(), encoding="utf-8")
    picture = rendered(path)
    if picture.startswith("<?xml"):
        assert picture.count('class="node"') == 2
        words = html.unescape(picture)
        shown = text.translate({0: "\ufffd", 0x1B: "\ufffd"})
        assert all(words.count(f">{line}</text>") == 2 for line in shown.split("\n"))


def test_different_names_stay_different() -> None:
    names = ['"', '\\"', "\\", "\\\\", "\n", "\\n"]
    assert len({quote(name) for name in names}) == len(names)


def test_long_names_are_broken_at_dots() -> None:
    lines = wrapped("decoder.block.11.layer.0.SelfAttention.relative_attention_bias", 24)
    assert lines.split("<BR/>") == [
        "decoder.block.11.layer.",
        "0.SelfAttention.",
        "relative_attention_bias",
    ]


def test_ranges() -> None:
    assert ranges([7, 0, 1, 2]) == "0-2, 7"


def test_unknown_layer_says_which_there_are(llama: DependencyGraph, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=r"no layer 7.*model\.layers 0-1"):
        llama.to_dot(tmp_path / "x.dot", layer=7)
    assert not list(tmp_path.iterdir())


def test_layer_of_a_model_without_layers(odd: DependencyGraph, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=r"no layer 0.*none"):
        odd.to_dot(tmp_path / "x.dot", layer=0)


def test_unknown_group(llama: DependencyGraph, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match=r"did you mean model\.layers\.0\.mlp:units"):
        llama.to_dot(tmp_path / "x.dot", group="model.layers.0.mlp:unit")


def test_layer_and_group_together(llama: DependencyGraph, tmp_path: Path) -> None:
    with pytest.raises(GroupError, match="not both"):
        llama.to_dot(tmp_path / "x.dot", layer=0, group="model.layers.0.mlp:units")


def test_a_failed_write_keeps_the_old_file(
    llama: DependencyGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.dot"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(CheckpointError, match="cannot be written: disk full"):
        llama.to_dot(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.dot"]
