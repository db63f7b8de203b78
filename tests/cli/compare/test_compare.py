"""The whole comparison on a tiny model: its table, its files, going on, and what it refuses."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.cli.compare import comparison
from fxprune.cli.compare import data as comparison_data
from fxprune.cli.compare import measure as measuring
from fxprune.cli.compare.command import compare
from fxprune.config import PruneConfig
from fxprune.data import text
from fxprune.errors import FxpruneError, FxpruneWarning, SelectionError
from fxprune.hf.open import models
from fxprune.hf.open.models import load_model
from fxprune.measure.perplexity import perplexity, windows
from fxprune.select.budget import Budget
from tests.hf import tiny

QUICK: dict[str, Any] = {
    "samples": "3", "length": "16", "windows": "4", "lengths": "16,32", "compensate": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    place = tmp_path_factory.mktemp("text")
    found = []
    for name, word in (("calibration", "horse"), ("first", "house"), ("second", "mouse")):
        file = place / f"{name}.txt"
        file.write_text(" ".join(f"The {word} number {i} is short." for i in range(60)))
        found.append(str(file))
    return found[0], found[1], found[2]


@pytest.fixture(scope="module")
def shared() -> dict[Any, Any]:
    """Models by folder and their graphs: no run changes a model, and tracing is what takes time."""
    return {}


@pytest.fixture(autouse=True)
def _load_and_trace_once(shared: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    load, trace = models.load_model, measuring.trace

    def load_once(spec: str) -> Any:
        if spec not in shared:
            shared[spec] = load(spec)
        return shared[spec]

    def trace_once(model: Any, *args: Any) -> Any:
        if model not in shared:
            shared[model] = trace(model, *args)
        return shared[model]

    monkeypatch.setattr(models, "load_model", load_once)
    monkeypatch.setattr(measuring, "trace", trace_once)


DRAWN = {"test_table_has_every_row_and_column", "test_without_matplotlib_there_is_no_plot"}


@pytest.fixture(autouse=True)
def _few_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For most of what these runs take is the plot."""
    if request.function.__name__ not in DRAWN:
        monkeypatch.setattr(comparison.plot, "plot", lambda *_: True)


@pytest.fixture
def run(folder: Path, files: tuple[str, str, str], tmp_path: Path) -> Callable[..., Any]:
    def call(criteria: str = "random,taylor", **options: Any) -> Any:
        given = {"evals": [files[1]], "text": files[0], "out": tmp_path / "out", **QUICK, **options}
        return compare(str(folder), criteria, progress=False, **given)

    return call


def test_table_has_every_row_and_column(run: Any, files: Any) -> None:
    found = run(ratios="0.1,0.2", ranking="local,global", evals=list(files[1:]), seeds=2)
    assert found.rows[0].label == "dense"
    assert sorted(row.label for row in found.rows[1:]) == sorted(
        f"{criterion}, {ranking}, 3 samples, 16 tokens, not compensated, {ratio} %"
        for criterion in ("random", "taylor")
        for ranking in ("local", "global")
        for ratio in (10, 20)
    )
    columns = [f"{name}.txt @ {length}" for name in ("first", "second") for length in (16, 32)]
    assert all(list(row.perplexity) == columns for row in found.rows)
    assert found.measured == 1 + 8 * 2
    for row in found.rows[1:]:
        removed = 1 - row.parameters.mean / tiny.PARAMETERS
        asked = row.config.goal()["pruning_ratio"]
        assert asked <= removed < asked + 0.05
        assert row.draws == 2
        assert row.seconds["estimate"] > 0
    with (found.folder / "results.csv").open() as stream:
        read = list(csv.DictReader(stream))
    assert [row["label"] for row in read] == [row.label for row in found.rows]
    assert float(read[0]["second.txt @ 32"]) == pytest.approx(
        found.rows[0].perplexity["second.txt @ 32"].mean
    )
    page = (found.folder / "results.md").read_text()
    assert (
        page.count("\n| ") == 1 + len(found.rows) + 2 * 5
    )  # and, of each ratio, four by the first
    assert "* calibration: crops of calibration.txt" in page
    assert "second.txt @ 32: 4 windows" in page
    pytest.importorskip("matplotlib")
    assert "<svg" in (found.folder / "perplexity-parameters.svg").read_text()


def test_for_an_engine_beside_the_free_plan(run: Any) -> None:
    found = run("magnitude", ratios="0.2", target="none,transformers")
    labels = [row.label.split(", ")[1] for row in found.rows[1:]]
    assert labels == ["global", "for transformers"]
    with pytest.raises(SelectionError, match=r"local, for transformers.* has one number of units"):
        run("magnitude", ranking="local", target="transformers")


def test_numbers_are_those_of_the_stages_by_hand(run: Any, folder: Path, files: Any) -> None:
    found = run("taylor", seeds=2)
    loaded = load_model(folder)
    assert loaded.tokenizer is not None
    model = loaded.model
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    ids = windows(text.joined(loaded.tokenizer, text.read(files[1])), 32, limit=4)
    assert found.rows[0].parameters.mean == tiny.PARAMETERS
    assert found.rows[0].perplexity["first.txt @ 32"].mean == pytest.approx(
        perplexity(model, ids).perplexity
    )
    for seed, result in enumerate(found.results[1:]):
        crops = text.crops(loaded.tokenizer, text.read(files[0]), 3, 16, seed)
        scores = fxprune.estimate(model, graph, fxprune.Taylor(), crops)
        small = fxprune.rewrite(traced, fxprune.select(graph, scores, 0.2))
        assert result.config.seed == seed
        assert result.parameters == sum(p.numel() for p in small.parameters())
        assert result.perplexity["first.txt @ 32"] == pytest.approx(
            perplexity(small, ids).perplexity
        )


def test_draws_have_a_spread(run: Any) -> None:
    found = run("random", seeds=3)
    values = [result.perplexity["first.txt @ 16"] for result in found.results[1:]]
    spread = found.rows[1].perplexity["first.txt @ 16"]
    assert len(set(values)) == 3
    assert (spread.least, spread.most) == (min(values), max(values))
    assert spread.mean == pytest.approx(sum(values) / 3)
    assert f"({spread.least:.4g} to {spread.most:.4g})" in (found.folder / "results.md").read_text()


def test_one_pass_per_draw(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real = measuring.estimate

    def counted(model: Any, graph: Any, criterion: Any, *args: Any, **options: Any) -> Any:
        if isinstance(criterion, list):
            passes.append(len(criterion))
        return real(model, graph, criterion, *args, **options)

    monkeypatch.setattr(measuring, "estimate", counted)
    run("random,taylor,magnitude,wanda-sp", ratios="0.1,0.2", seeds=2)
    assert passes == [4, 4]


def test_a_second_run_takes_what_is_there(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    files = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    monkeypatch.setattr(measuring, "perplexity", lambda *_: pytest.fail("measured again"))
    again = run()
    assert again.measured == 0
    assert again.rows == first.rows
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == files


def test_an_interrupted_run_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = measuring.perplexity, []

    def twice(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(measuring, "perplexity", twice)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(measuring, "perplexity", real)
    found = run()
    # The model as it was and one configuration were there, two columns each.
    assert found.measured == 1
    assert len(found.rows) == 3


def test_other_settings_are_measured(run: Any) -> None:
    run("random")
    assert run("random", windows="3").measured == 2
    assert run("random", length="17").measured == 1
    assert run("random", seeds=2).measured == 1
    assert run("random", keep_first=1, seeds=2).measured == 2


def test_other_weights_are_measured(
    run: Any, folder: Path, tmp_path: Path, files: tuple[str, str, str]
) -> None:
    run("magnitude")
    sibling = tiny.llama()
    with torch.no_grad():
        sibling.model.norm.weight.mul_(1.1)
    sibling.save_pretrained(tmp_path / "sibling")
    tiny.tokenizer().save_pretrained(tmp_path / "sibling")
    options: dict[str, Any] = {**QUICK, "text": files[0], "evals": [files[1]]}
    found = compare(
        str(tmp_path / "sibling"), "magnitude", out=tmp_path / "out", progress=False, **options
    )
    assert found.measured == 2


def test_equal_draws_are_measured_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = measuring.perplexity, []
    monkeypatch.setattr(measuring, "perplexity", lambda *a: calls.append(a) or real(*a))
    found = run("magnitude", seeds=3)
    assert len(calls) == 2 * 2
    spread = found.rows[1].perplexity["first.txt @ 16"]
    assert spread.least == spread.most
    assert found.rows[1].draws == 3


@pytest.mark.parametrize("method", ["bias", "least-squares"])
def test_compensation(run: Any, method: str) -> None:
    found = run("magnitude", compensate=f"none,{method}", compensation_samples=5)
    plain, mended = found.rows[1:]
    assert mended.label == (
        f"magnitude, global, 3 samples, 16 tokens, {method}, compensated on 5 samples, 20 %"
    )
    assert mended.seconds["compensate"] > 0
    assert mended.perplexity != plain.perplexity
    assert mended.parameters.mean <= 0.8 * tiny.PARAMETERS


def test_a_budget_instead_of_a_ratio(folder: Path, files: Any, tmp_path: Path) -> None:
    """As the benches compare: a list of configurations with absolute budgets."""
    few: Any = {"criterion": "magnitude", "compensation": None}
    asked = [PruneConfig(budget=Budget(params=share), **few) for share in (0.8, 0.7)]
    data = comparison_data.read(files[0], [files[1]])
    out = tmp_path / "out"
    found = comparison.run(str(folder), asked, data, out, lengths={8: 2}, progress=False)
    assert [row.label for row in found.rows] == [
        "dense",
        "magnitude, global, not compensated, params 0.8",
        "magnitude, global, not compensated, params 0.7",
    ]


def test_the_model_is_not_changed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = measuring.prepare

    def prepare(loaded: Any, *args: Any) -> Any:
        seen.append(loaded.model)
        return real(loaded, *args)

    monkeypatch.setattr(measuring, "prepare", prepare)
    monkeypatch.setattr("fxprune.cli.compare.comparison.prepare", prepare)
    run("taylor", compensate="bias,least-squares")
    for name, parameter in tiny.llama().named_parameters():
        assert torch.equal(seen[0].get_parameter(name), parameter), name


def test_without_matplotlib_there_is_no_plot(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(FxpruneWarning, match="no plot: it needs matplotlib"):
        found = run("random")
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "results.csv", "results.jsonl", "results.md",
    ]  # fmt: skip


def test_token_ids_calibrate(run: Any, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "ids.npy", np.arange(120).reshape(6, 20))
    found = run("taylor", text=str(tmp_path / "ids.npy"))
    assert "crops of ids.npy" in (found.folder / "results.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": "tailor"}, "no criterion 'tailor'"),
        ({"criteria": ","}, "no criteria given"),
        ({"ratios": "0.2,much"}, "pruning_ratio='much': give a number"),
        ({"ratios": "1.5"}, "ratio=1.5 is outside"),
        ({"ranking": "best"}, "ranking='best': choose from"),
        ({"kinds": ["mlp,heads"]}, "unknown kind 'heads'"),
        ({"kinds": [","]}, "no kinds given"),
        ({"compensate": "magic"}, "compensation='magic': choose from"),
        ({"lengths": "128,x"}, "lengths has 'x', which is not a number"),
        ({"lengths": "1"}, "windows need at least 2"),
        ({"windows": "-1"}, "windows is -1"),
        ({"windows": "4,5,6"}, "3 numbers for 2 lengths"),
        ({"seeds": 0}, "seeds is 0"),
        ({"samples": "0"}, "calibration_samples=0"),
        ({"length": "1.5"}, "length has '1.5'"),
        ({"keep_last": -2}, "keep_last=-2"),
        ({"text": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"evals": ["nowhere.txt"]}, "nowhere.txt cannot be read"),
        ({"text": "weights.pt"}, "is a pickle"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used"),
    ],
)
def test_refused_before_anything_is_loaded(
    run: Any, nothing_loads: None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FxpruneError) as raised:
        run(**options)
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_text_that_measures_too(run: Any, nothing_loads: None, files: Any) -> None:
    with pytest.raises(FxpruneError, match="cannot both calibrate and measure"):
        run(evals=[files[1], files[0]])


def test_folder_of_something_else(run: Any, nothing_loads: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FxpruneError, match="is left alone"):
        run(out=tmp_path)


def test_too_short_texts_and_too_long_windows(run: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    with pytest.raises(FxpruneError, match="longest record has 10 tokens, 16 are needed"):
        run(text=str(tmp_path / "short.txt"))
    with pytest.raises(FxpruneError, match=r"short\.txt: the evaluation text has 10 tokens"):
        run(evals=[str(tmp_path / "short.txt")])
    with pytest.raises(FxpruneError, match=r"windows of 9999 tokens are too long"):
        run(lengths="9999")


def test_impossible_ratio_comes_to_light_before_any_measurement(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "perplexity", lambda *_: pytest.fail("measured"))
    with pytest.raises(
        FxpruneError, match=r"^random, global, 3 samples, 16 tokens, not compensated, 90 %: "
    ):
        run(ratios="0.1,0.9")


def test_what_fails_names_the_configuration_and_keeps_the_rest(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PruneConfig) -> Any:
        if self.seed == 1:
            raise FxpruneError("no luck")
        return real(self)

    real = PruneConfig.selection
    done = run("random")
    monkeypatch.setattr(PruneConfig, "selection", refuse)
    monkeypatch.setattr("fxprune.cli.compare.comparison.try_selections", lambda *_: None)
    with pytest.raises(FxpruneError, match=r"random, .* 20 %, seed 1: no luck"):
        run("random", seeds=2)
    assert (done.folder / "results.md").read_text().count("\n| ") == 3


def test_model_without_perplexity(tmp_path: Path, files: Any) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=8,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(FxpruneError, match="is not a causal language model"):
        compare(str(tmp_path / "vit"), text=files[0], evals=[files[1]], out=tmp_path / "out")


def test_steps_and_measured_costs_are_those_of_prune(run: Any, folder: Path) -> None:
    """They share the scores of the first step with what is chosen by them alone."""
    plain = run("taylor", ratios="0.3").rows[1]
    stepped = run("taylor", ratios="0.3", steps=3).rows[1]
    measured = run("taylor", ratios="0.3", search="measured", samples="8").rows[1]
    assert stepped.label == plain.label.replace("global", "global, 3 steps")
    assert "taylor, global, measured, 8 samples" in measured.label
    assert stepped.perplexity != plain.perplexity != measured.perplexity


@pytest.mark.parametrize("option", ["depth", "stream"])
def test_what_is_not_compared(run: Any, option: str) -> None:
    with pytest.raises(SelectionError, match=rf"a comparison has no {option}="):
        run(**{option: fxprune.Depth(remove=1) if option == "depth" else True})
