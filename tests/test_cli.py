"""The command line from outside: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune import cli, workflow
from fxprune.hf import models
from tests.hf import tiny

QUICK = ("--calibration-samples", "3", "--calibration-length", "16", "--eval-samples", "4")


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fxprune", *map(str, arguments)])
        status: Any = 0
        try:
            cli.main()
        except SystemExit as left:
            status = left.code or 0
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return call


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test as soon as a model is loaded."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(models, "load_model", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "prose.txt"
    file.write_text(
        "\n\n".join(f"This is paragraph number {i}, and it is short." for i in range(60))
    )
    return file


def test_help_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in done.stdout for name in ("inspect", "prune", "compare", "demo"))


class TestInspect:
    def test_folder(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder)
        assert ran.status == 0
        assert "tiny: LlamaForCausalLM" in ran.out
        assert "15,504 parameters" in ran.out
        assert "for 1 x 64 tokens" in ran.out
        assert "model.layers.*.mlp:units" in ran.out
        assert "embedding rows are looked up by index" in ran.out

    def test_needs_no_weights(self, run: Any, folder: Path) -> None:
        assert run("inspect", folder / "config.json").out == run("inspect", folder).out

    def test_group_by_group(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder, "--all")
        assert "model.layers.0.mlp:units" in ran.out
        assert "model.layers.1.mlp:units" in ran.out

    def test_one_layer(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder, "--layer", "1")
        assert "model.layers.1.mlp:units" in ran.out
        assert "model.layers.0" not in ran.out
        assert "no groups in layer 7" in run("inspect", folder, "--layer", "7").out

    def test_files(self, run: Any, folder: Path, tmp_path: Path) -> None:
        ran = run("inspect", folder, "--dot", tmp_path / "g.dot", "--json", tmp_path / "g.json")
        assert ran.status == 0
        assert (tmp_path / "g.dot").read_text().startswith(("digraph", "strict digraph"))
        content = json.loads((tmp_path / "g.json").read_text())
        assert content["parameters"] == tiny.PARAMETERS
        assert content["architecture"] == "LlamaForCausalLM"
        assert content["kinds"] == {
            "attention": 2,
            "query": 2,
            "head_dim": 3,
            "mlp": 2,
            "channel": 1,
        }

    @pytest.mark.parametrize(
        "config",
        [
            transformers.BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4),
            transformers.T5Config(d_model=24, d_ff=40, d_kv=6, num_layers=2, num_heads=4),
            transformers.ViTConfig(
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=16,
                patch_size=8,
            ),
        ],
        ids=["bert", "t5", "vit"],
    )
    def test_other_tasks(
        self, run: Any, config: transformers.PreTrainedConfig, tmp_path: Path
    ) -> None:
        config.save_pretrained(tmp_path)
        ran = run("inspect", tmp_path / "config.json")
        assert ran.status == 0
        assert "mlp" in ran.out
        assert "attention" in ran.out

    def test_file_into_no_folder(self, run: Any, nothing_loads: None, tmp_path: Path) -> None:
        ran = run("inspect", "smollm2", "--json", tmp_path / "no" / "g.json")
        assert ran.status == 2
        assert "to write g.json into" in ran.err

    @pytest.mark.parametrize("model", ["./nowhere", "org/name", "nowhere.json"])
    def test_no_such_model(self, run: Any, model: str) -> None:
        ran = run("inspect", model)
        assert ran.status == 2
        assert ran.out == ""
        assert ran.err.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in ran.err


class TestPrune:
    @pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random"])
    def test_folder(
        self, run: Any, folder: Path, text: Path, tmp_path: Path, criterion: str
    ) -> None:
        out = tmp_path / "small"
        ran = run("prune", folder, "--text", text, "--out", out, "--criterion", criterion, *QUICK)
        assert ran.status == 0, ran.err
        for shown in ("parameters", "MACs", "size on disk", "perplexity", "latency", "proof:"):
            assert shown in ran.out
        assert "15,504" in ran.out
        small = fxprune.load(out)
        after = sum(p.numel() for p in small.parameters())
        assert 0.2 <= 1 - after / tiny.PARAMETERS < 0.25
        report = json.loads((out / "report.json").read_text())
        assert report["after"]["parameters"] == after
        assert report["recipe"]["criterion"] == criterion
        assert report["before"]["perplexity"] > 1
        assert report["after"]["latency"] > 0
        assert fxprune.Plan.load(out / "plan.json").parameters_after == after
        assert transformers.AutoTokenizer.from_pretrained(out).vocab_size == tiny.VOCABULARY - 1

    def test_options_reach_the_plan(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--kinds", "mlp", "--ratio", "0.1", "--keep-first", "1", "--ranking", "global")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK, "--no-verify")
        assert ran.status == 0, ran.err
        assert "proof" not in ran.out
        assert set(fxprune.Plan.load(tmp_path / "s" / "plan.json").kept) == {
            "model.layers.1.mlp:units"
        }

    def test_the_same_seed_gives_the_same_model(
        self, run: Any, folder: Path, tmp_path: Path
    ) -> None:
        plans = []
        for _ in range(2):
            # The second time it replaces the folder it wrote before.
            ran = run("prune", folder, "--out", tmp_path / "s", "--seed", "1", *QUICK)
            assert ran.status == 0, ran.err
            plans.append(fxprune.Plan.load(tmp_path / "s" / "plan.json"))
        assert plans[0] == plans[1]

    def test_model_that_is_no_language_model(self, run: Any, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            image_size=16, patch_size=8,
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        ran = run("prune", tmp_path / "vit", "--out", tmp_path / "s")
        assert ran.status == 2
        assert "no causal language model, which taylor needs" in ran.err
        ran = run("prune", tmp_path / "vit", "--out", tmp_path / "s", "--criterion", "magnitude")
        assert ran.status == 0, ran.err
        assert "perplexity" not in ran.out
        assert "latency" in ran.out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--ratio", "1"), "outside [0, 1)"),
            (("--ratio", "-0.2"), "outside [0, 1)"),
            (("--criterion", "tailor"), "no criterion 'tailor'"),
            (("--ranking", "best"), "no ranking 'best'"),
            (("--kinds", "mlp,heads"), "no kind 'heads'"),
            (("--kinds", ","), "no kinds"),
            (("--text", "nowhere.txt"), "nowhere.txt cannot be read"),
            (("--eval-text", "nowhere.txt"), "nowhere.txt cannot be read"),
            (("--calibration-length", "1"), "calibration-length is 1"),
            (("--keep-last", "-1"), "keep-last is -1"),
            (("--device", "nonsense"), "device 'nonsense' cannot be used"),
        ],
    )
    def test_refused_before_anything_is_loaded(
        self, run: Any, nothing_loads: None, tmp_path: Path, options: tuple[str, ...], message: str
    ) -> None:
        ran = run("prune", "smollm2", "--out", tmp_path / "s", *options)
        assert ran.status == 2
        assert message in ran.err
        assert [line for line in ran.err.splitlines() if line] == [ran.err.strip()]
        assert not (tmp_path / "s").exists()

    def test_folder_of_something_else(self, run: Any, nothing_loads: None, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("")
        ran = run("prune", "smollm2", "--out", tmp_path)
        assert ran.status == 2
        assert "was not written by fxprune: it is left alone" in ran.err

    def test_same_text_twice(
        self, run: Any, nothing_loads: None, text: Path, tmp_path: Path
    ) -> None:
        ran = run("prune", "smollm2", "--out", tmp_path / "s", "--text", text, "--eval-text", text)
        assert ran.status == 2
        assert "cannot both calibrate and measure" in ran.err

    def test_config_has_no_weights(self, run: Any, folder: Path, tmp_path: Path) -> None:
        ran = run("prune", folder / "config.json", "--out", tmp_path / "s")
        assert ran.status == 2
        assert "has no weights; give the folder" in ran.err

    def test_no_tokenizer(self, run: Any, tmp_path: Path) -> None:
        tiny.folder(tmp_path / "m", with_tokenizer=False)
        ran = run("prune", tmp_path / "m", "--out", tmp_path / "s")
        assert ran.status == 2
        assert "has no tokenizer" in ran.err

    def test_text_too_short(self, run: Any, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("Too short. Much too short.")
        ran = run("prune", folder, "--out", tmp_path / "s", "--text", tmp_path / "t.txt")
        assert ran.status == 2
        assert "tokens, 128 are needed" in ran.err

    def test_ratio_beyond_the_chosen_kinds(self, run: Any, folder: Path, tmp_path: Path) -> None:
        ran = run("prune", folder, "--out", tmp_path / "s", "--ratio", "0.9", *QUICK)
        assert ran.status == 2
        assert "cannot be met" in ran.err
        assert not (tmp_path / "s").exists()

    def test_out_is_needed(self, run: Any) -> None:
        ran = run("prune", "smollm2")
        assert ran.status == 2
        assert "--out" in ran.err


def test_little_memory_leaves_latency_out(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "room_for", lambda size: False)
    ran = run("prune", folder, "--out", tmp_path / "s", *QUICK)
    assert ran.status == 0, ran.err
    assert "latency" not in ran.out.split("proof")[0].split("MACs:")[0]


def test_room_for() -> None:
    assert workflow.room_for(0)
    if Path("/proc/meminfo").exists():
        assert not workflow.room_for(10**18)


def test_own_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show_warning("sizes are static", fxprune.FxpruneWarning)
    cli._show_warning("someone else's advice", UserWarning)
    assert capsys.readouterr().err == "warning: sizes are static\n"
