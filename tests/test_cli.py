"""The command line from outside: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.cli import app as cli
from fxprune.cli import workflow
from fxprune.stream import iterate
from tests.command_line import run_command
from tests.hf import tiny
from tests.inspect.page.reading import check_alone
from tests.marks import but_slow

QUICK = (
    *("--calibration-samples", "3", "--calibration-length", "16"),
    *("--compensation-samples", "8", "--eval-samples", "4"),
)


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
        return Ran(*run_command(monkeypatch, capsys, *arguments))

    return call


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


def test_help_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fxprune", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("fxprune", run_name="__main__")
    assert not left.value.code
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("inspect", "prune", "recover", "compare", "eval", "demo"))


class TestInspect:
    def test_folder(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder)
        assert ran.status == 0
        assert "tiny: LlamaForCausalLM" in ran.out
        assert "15,504 parameters" in ran.out
        assert "for 1 x 64 tokens" in ran.out
        assert "model.layers.*.mlp:units" in ran.out
        assert "embedding rows are looked up by index" in ran.out

    def test_costs(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder)
        # Two layers of two key/value heads, keys and values of 6 each.
        assert "48 numbers cached per token" in ran.out
        assert "MiB in fp16" in ran.out
        # q, k, v, o and the MLP of both layers, the head; and queries by keys, weights by values.
        macs = 64 * (2 * (3 * 24 * 24 + 3 * 24 * 40) + 257 * 24) + 2 * 2 * 64 * 64 * 24
        assert f"{macs / 1e6:.2f} MMACs for 1 x 64 tokens" in ran.out
        assert len(ran.out.splitlines()) < 25

    def test_legal_sizes(self, run: Any, folder: Path, tmp_path: Path) -> None:
        assert "units that may stay" not in run("inspect", folder).out
        ran = run("inspect", folder, "--legal", "--json", tmp_path / "g.json")
        assert "units that may stay" in ran.out
        assert "tp=2" in ran.out
        rows = json.loads((tmp_path / "g.json").read_text())["legality"]
        mlp = next(row for row in rows if row["kind"] == "mlp")
        assert mlp["kept"]["x8"] == "8,16,24,32,40"

    def test_what_an_engine_takes(self, run: Any, folder: Path) -> None:
        ran = run("inspect", folder, "--legal", "--for", "transformers-remote")
        row = next(line for line in ran.out.splitlines() if "│ channel" in line)
        cells = [cell.strip() for cell in row.split("│")]
        assert cells[3] == "24"
        assert cells[4].startswith("multiples")  # of 4; a narrow terminal breaks the line
        assert cells[5] == "any"
        ran = run("inspect", folder, "--for", "transformers")
        assert (ran.status, "give --legal as well" in ran.err) == (2, True)
        ran = run("inspect", folder, "--legal", "--for", "transformer")
        assert "did you mean transformers" in ran.err

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

    def test_why(self, run: Any, folder: Path, tmp_path: Path) -> None:
        name = "model.layers.0.mlp:units"
        ran = run("inspect", folder, "--explain", name, "--json", tmp_path / "e.json")
        assert ran.status == 0
        assert "to model.layers.0.mlp.down_proj.weight[1]" in ran.out
        assert "R1 R2 R3  model.layers.0.mlp.act_fn" in ran.out
        assert "parameters" not in ran.out
        content = json.loads((tmp_path / "e.json").read_text())
        assert [len(path["steps"]) for path in content["couplings"][0]["paths"]] == [0, 5, 4]
        key, out = (f"model.layers.0.self_attn.{part}_proj" for part in "ko")
        ran = run("inspect", folder, "--explain", f"{key}.weight", "--to", out)
        assert ran.out.count("\nto ") == 2  # heads, and the residual stream
        ran = run("inspect", folder, "--explain", "model.layers.0.mlp.dwn_proj")
        assert (ran.status, ran.out) == (2, "")
        assert "did you mean model.layers.0.mlp.down_proj" in ran.err

    def test_page(self, run: Any, folder: Path, tmp_path: Path) -> None:
        page, scores = tmp_path / "m.html", tmp_path / "s.safetensors"
        config = folder / "config.json"
        fxprune.Scores({"model.layers.1.mlp:units": torch.ones(40)}).save(scores)
        ran = run("inspect", config, "--html", page, "--scores", scores)
        assert ran.status == 0
        assert "15,504 parameters" in ran.out
        check_alone(page.read_text())
        assert "layer 1, mlp: mean score 1" in page.read_text()
        fxprune.Scores({"blocks.0:units": torch.ones(4)}).save(scores)
        page.unlink()
        ran = run("inspect", config, "--html", page, "--scores", scores)
        assert (ran.status, ran.out) == (2, "")
        assert "of another model" in ran.err
        assert not page.exists()

    @pytest.mark.usefixtures("nothing_loads")
    def test_options_of_no_use(self, run: Any, folder: Path, tmp_path: Path) -> None:
        page = tmp_path / "m.html"
        for options, message in (
            (("--scores", folder / "config.json"), "give --html as well"),
            (("--to", "lm_head"), "give its beginning, --explain"),
            (("--explain", "lm_head", "--html", page), "leave --dot and --html out"),
            (("--html", page, "--scores", folder / "config.json"), "cannot read the scores"),
            (("--html", tmp_path / "no" / "m.html"), "no folder"),
        ):
            ran = run("inspect", folder, *options)
            assert (ran.status, ran.out) == (2, "")
            assert message in ran.err

    def test_files(self, run: Any, folder: Path, tmp_path: Path) -> None:
        ran = run("inspect", folder, "--dot", tmp_path / "g.dot", "--json", tmp_path / "g.json")
        assert ran.status == 0
        assert (tmp_path / "g.dot").read_text().startswith(("digraph", "strict digraph"))
        content = json.loads((tmp_path / "g.json").read_text())
        assert content["parameters"] == tiny.PARAMETERS
        assert content["architecture"] == "LlamaForCausalLM"
        assert content["kv_cache"] == 48
        assert content["macs"] > 0
        assert content["macs_input"] == "1 x 64 tokens"
        assert "legality" not in content
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
            pytest.param(
                transformers.T5Config(d_model=24, d_ff=40, d_kv=6, num_layers=2, num_heads=4),
                marks=pytest.mark.slow,
            ),
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
        ran = run("inspect", "smollm2", "--dot", tmp_path)
        assert ran.status == 2
        assert "is a folder" in ran.err

    @pytest.mark.parametrize("model", ["./nowhere", "org/name", "nowhere.json"])
    def test_no_such_model(self, run: Any, model: str) -> None:
        ran = run("inspect", model)
        assert ran.status == 2
        assert ran.out == ""
        assert ran.err.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in ran.err


class TestPrune:
    @pytest.mark.parametrize(
        "criterion", but_slow(["taylor", "magnitude", "random"], "magnitude", "random")
    )
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
        assert report["config"]["criterion"] == criterion
        assert report["before"]["perplexity"] > 1
        assert report["after"]["latency"] > 0
        assert fxprune.Plan.load(out / "plan.json").parameters_after == after
        assert transformers.AutoTokenizer.from_pretrained(out).vocab_size == tiny.VOCABULARY - 1

    def test_options_reach_the_plan(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--kinds", "mlp", "--ratio", "0.1", "--keep-first", "1", "--ranking", "global")
        options += ("--multiple-of", "mlp=4", "--no-verify")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        assert "proof" not in ran.out
        # A neuron holds 72 of 15,504 parameters: 22 would have to go, 24 are a multiple.
        kept = fxprune.Plan.load(tmp_path / "s" / "plan.json").kept
        assert {name: len(units) for name, units in kept.items()} == {
            "model.layers.1.mlp:units": 16
        }

    def test_limits_reach_the_plan(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--ratio", "0.1", "--max-ratio", "mlp=75%,*.0.mlp:*=0.25", "--min-kept")
        options += ("attention=2", "--only", "model.layers.0", "--only", "model.layers.1")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        kept = fxprune.Plan.load(tmp_path / "s" / "plan.json").kept
        assert not [name for name in kept if name.endswith("heads")]
        assert len(kept.get("model.layers.0.mlp:units", range(40))) >= 30
        assert len(kept["model.layers.1.mlp:units"]) >= 10
        report = json.loads((tmp_path / "s" / "report.json").read_text())
        assert report["config"]["max_ratio"] == {"mlp": 0.75, "*.0.mlp:*": 0.25}
        assert report["config"]["only"] == ["model.layers.0", "model.layers.1"]

    def test_costs_and_steps(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--macs", "0.8", "--kv-cache", "0.5", "--steps", "2", "--criterion", "flap")
        options += ("--layer-ratio", "*.0.mlp:units=0")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert "model.layers.0.mlp:units" not in plan.kept
        assert [len(plan.kept[f"model.layers.{i}.self_attn:heads"]) for i in (0, 1)] == [1, 1]
        report = json.loads((tmp_path / "s" / "report.json").read_text())
        assert report["after"]["macs"] <= 0.8 * report["before"]["macs"]
        assert "pruning_ratio" not in report["config"]
        assert report["config"]["overrides"] == {"*.0.mlp:units": 0}
        assert report["criterion"].startswith("FLAP(")
        assert "step 2 of 2" in ran.err
        assert "bound by: " in ran.out

    @pytest.mark.parametrize(
        ("method", "scope", "count"),
        [
            pytest.param("bias", "pruned", 4, marks=pytest.mark.slow),
            ("least-squares", "pruned", 4),
            ("least-squares", "all", 14),
        ],
    )
    def test_units_and_compensation(
        self, run: Any, folder: Path, tmp_path: Path, method: str, scope: str, count: int
    ) -> None:
        options = ("--units", "0.5", "--compensate", method, "--compensation-samples", "4")
        options += ("--compensation-scope", scope)
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        assert f"{method} compensation of {count} consumers" in ran.out
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert {len(kept) for kept in plan.kept.values()} == {20, 1}
        assert len(plan.biases) == (4 if method == "bias" else 0)
        small = fxprune.load(tmp_path / "s")
        assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
        named = dict(small.named_parameters())
        assert all(named[name].abs().sum() > 0 for name in plan.biases)

    def test_what_takes_more_time(self, run: Any, folder: Path, text: Path, tmp_path: Path) -> None:
        """Text of its own, measured costs and blocks that are distilled, all at once."""
        ran = run(
            "prune", folder, "--out", tmp_path / "o", "--text", text, "--ratio", "0.3",
            "--calibration-samples", "24", "--calibration-length", "16",
            "--compensation-samples", "24", "--written-samples", "24", "--search", "measured",
            "--compensate", "blockwise", "--eval-length", "16", "--eval-samples", "4",
        )  # fmt: skip
        assert ran.status == 0, ran.err
        assert "2 blocks distilled" in ran.out
        report = json.loads((tmp_path / "o" / "report.json").read_text())
        assert report["config"]["written_samples"] == 24
        assert report["criterion"].startswith("measured(OBS(")

    def test_a_report_is_a_recipe(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--ratio", "15%", "--criterion", "magnitude", "--ignore", "*.layers.0.mlp")
        options += ("--compensate", "none", "--macs", "90%", "--keep-last", "0")
        ran = run("prune", folder, "--out", tmp_path / "a", *options, *QUICK)
        assert ran.status == 0, ran.err
        report = tmp_path / "a" / "report.json"
        ran = run("prune", folder, "--out", tmp_path / "b", "--recipe", report)
        assert ran.status == 0, ran.err
        one, two = (fxprune.Plan.load(tmp_path / each / "plan.json") for each in "ab")
        assert one == two
        assert "model.layers.0.mlp:units" not in one.kept
        assert (
            json.loads((tmp_path / "b" / "report.json").read_text())["config"]
            == (json.loads(report.read_text())["config"])
        )
        config = fxprune.PruneConfig.load(report)
        assert fxprune.prune(tiny.llama(), config=config, verify=False).plan == one

    def test_what_is_typed_comes_before_a_recipe(
        self, run: Any, folder: Path, tmp_path: Path
    ) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("pruning_ratio: 40%\ncriterion: magnitude\ncompensation: none\n")
        options = ("--recipe", recipe, "--ratio", "0.1", "--no-verify")
        ran = run("prune", folder, "--out", tmp_path / "a", *options, *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "a" / "plan.json")
        assert plan.pruning_ratio == 0.1
        assert plan.criterion == repr(fxprune.Magnitude())
        recipe.write_text("pruning_rato: 40%\n")
        ran = run("prune", folder, "--out", tmp_path / "b", "--recipe", recipe)
        assert ran.status == 2
        assert "no field 'pruning_rato'; did you mean pruning_ratio?" in ran.err

    def test_scores_are_saved_and_planned_from(
        self, run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "scores.safetensors"
        options = ("--criterion", "flap", "--save-scores", file, "--ratio", "0.1")
        ran = run("prune", folder, "--out", tmp_path / "a", *options, *QUICK)
        assert ran.status == 0, ran.err
        assert fxprune.Scores.load(file).criterion == repr(fxprune.FLAP())
        ran = run("prune", folder, "--out", tmp_path / "b", "--criterion", "flap", *QUICK)
        assert ran.status == 0, ran.err

        def refuse(*args: Any, **kwargs: Any) -> None:
            pytest.fail("scores were estimated")

        monkeypatch.setattr(iterate, "estimate", refuse)
        ran = run("prune", folder, "--out", tmp_path / "c", "--scores", file, *QUICK)
        assert ran.status == 0, ran.err
        fresh, again = (fxprune.Plan.load(tmp_path / each / "plan.json") for each in "bc")
        assert again == fresh
        report = json.loads((tmp_path / "c" / "report.json").read_text())
        assert report["criterion"] == repr(fxprune.FLAP())
        assert "criterion" not in report["config"]
        assert report["scores"] == str(file)

    def test_scores_of_another_model(self, run: Any, folder: Path, tmp_path: Path) -> None:
        fxprune.Scores({"model.layers.0.mlp:units": torch.rand(7)}).save(tmp_path / "s.safetensors")
        options = ("--scores", tmp_path / "s.safetensors", "--kinds", "mlp")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 2
        assert "have shape (7,); it has 40 units" in ran.err
        assert not (tmp_path / "s").exists()

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
        assert "not a causal language model, which Taylor(" in ran.err
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
            (("--ranking", "best"), "--ranking 'best': choose from local, global"),
            (("--kinds", "mlp,heads"), "unknown kind 'heads'"),
            (("--kinds", ","), "no kinds"),
            (("--text", "nowhere.txt"), "nowhere.txt cannot be read"),
            (("--eval-text", "nowhere.txt"), "nowhere.txt cannot be read"),
            (("--calibration-length", "1"), "--calibration-length 1: at least 2 tokens"),
            (("--keep-last", "-1"), "--keep-last -1: a whole number, at least 0"),
            (("--device", "nonsense"), "device 'nonsense' cannot be used"),
            (("--macs", "0"), "--macs 0: what stays is a fraction in (0, 1]"),
            (("--macs", "nan"), "--macs nan: what stays"),
            (("--kv-cache", "-3"), "--kv-cache -3: what stays"),
            (("--units", "1"), "--units 1.0 is outside [0, 1)"),
            (("--units", "0.2", "--macs", "0.5"), "--units cannot be combined with --macs"),
            (
                ("--ratio", "20"),
                "--ratio 20.0 is outside [0, 1): it is a fraction, did you mean 0.2?",
            ),
            (("--ratio", "20", "--macs", "0.5"), "did you mean 0.2?"),
            (("--remove-ratio", "25"), "did you mean 0.25?"),
            (("--units", "30"), "did you mean 0.3?"),
            (("--ratio", "1.5", "--macs", "0.5"), "--ratio 1.5 is outside [0, 1)"),
            (
                ("--compensate", "best"),
                "--compensate 'best': choose from auto, bias, least-squares, blockwise, none",
            ),
            (
                ("--compensation-samples", "0"),
                "--compensation-samples 0: a whole number, at least 1",
            ),
            (("--multiple-of", "0"), "--multiple-of 0: a whole number, at least 1"),
            (("--multiple-of", "mlp=0"), "--multiple-of 0: a whole number, at least 1"),
            (("--multiple-of", "8,4"), "write a number, or KIND=NUMBER with commas"),
            (("--min-kept", "attention=x"), "write a number, or KIND=NUMBER with commas"),
            (("--min-kept", "attention=0"), "--min-kept 0: a whole number, at least 1"),
            (("--max-ratio", "mlp=150%"), "--max-ratio 1.5 is outside [0, 1)"),
            (("--max-ratio", "0.5,mlp=1"), "write a number, or KIND=NUMBER with commas"),
            (("--layers", "4-"), "--layers '4-': numbers of layers, such as '4-20,25'"),
            (("--multiple-of", "mpl=8"), "unknown kind 'mpl': take mlp"),
            (("--layer-ratio", "*.0.*"), "--layer-ratio '*.0.*': write PATTERN=FRACTION"),
            (
                ("--layer-ratio", "*.0.*=half"),
                "override of '*.0.*'='half': give a number in [0, 1)",
            ),
            (("--layer-ratio", "0.5"), "'0.5': write PATTERN=FRACTION"),
            (("--layer-ratio", "*.0.*=1"), "override of '*.0.*'=1.0 is outside [0, 1)"),
            (("--steps", "0"), "--steps 0: a schedule has at least one step"),
            (("--steps", "2", "--macs", "1e9"), "--macs 1e+09 is absolute; in 2 steps"),
            (("--scores", "no.safetensors"), "cannot read the scores no.safetensors"),
            (("--scores", "s", "--criterion", "flap"), "either a criterion or scores="),
            (("--scores", "s", "--steps", "2"), "2 steps need new scores"),
            (("--save-scores", "no/where/s.safetensors"), "to write s.safetensors into"),
            (("--save-scores", "."), "is a folder"),
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

    def test_scores_into_the_folder_that_is_replaced(
        self, run: Any, nothing_loads: None, tmp_path: Path
    ) -> None:
        out = tmp_path / "s"
        out.mkdir()
        (out / "fxprune.json").write_text("{}")  # of an earlier run
        ran = run("prune", "smollm2", "--out", out, "--save-scores", out / "scores.safetensors")
        assert ran.status == 2
        assert f"would be replaced along with {out}" in ran.err

    @pytest.mark.parametrize("option", ["--steps", "--units", "--macs", "--ratio"])
    def test_no_number(self, run: Any, tmp_path: Path, option: str) -> None:
        ran = run("prune", "smollm2", "--out", tmp_path / "s", option, "some")
        assert ran.status == 2
        assert option in ran.err

    def test_what_only_the_model_can_refuse(self, run: Any, folder: Path, tmp_path: Path) -> None:
        cases = {
            ("--macs", "0.01"): "macs=0.01 cannot be met: at least",
            ("--kv-cache", "1.5"): "kv_cache=1.5 cannot be met: at least 24 of the model's 48",
            ("--layer-ratio", "*.9.*=0.5"): "the override '*.9.*' matches no group",
            ("--max-ratio", "mlp=10%"): "2 groups are held by max_ratio=0.1; choose more kinds",
            ("--layers", "2"): "there is no layer 2, the model has layers 0 to 1",
        }
        for options, message in cases.items():
            ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
            assert ran.status == 2
            last = [line for line in ran.err.splitlines() if line.strip()][-1]
            assert last.startswith("error: ")
            assert message in last
            assert "Calibrating" not in ran.err  # nothing was estimated for nothing
            assert not (tmp_path / "s").exists()

    def test_compensation_needs_a_language_model(self, run: Any, tmp_path: Path) -> None:
        config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4)
        config.architectures = ["ViTForImageClassification"]
        config.save_pretrained(tmp_path)
        options = ("--criterion", "magnitude", "--compensate", "bias")
        ran = run("prune", tmp_path, "--out", tmp_path / "s", *options)
        assert ran.status == 2
        assert "not a causal language model, which bias needs" in ran.err

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
        assert "a window needs 128" in ran.err

    def test_ratio_beyond_the_chosen_kinds(self, run: Any, folder: Path, tmp_path: Path) -> None:
        ran = run("prune", folder, "--out", tmp_path / "s", "--ratio", "0.9", *QUICK)
        assert ran.status == 2
        assert "cannot be met" in ran.err
        assert not (tmp_path / "s").exists()

    def test_out_is_needed(self, run: Any) -> None:
        ran = run("prune", "smollm2")
        assert ran.status == 2
        assert "--out" in ran.err


FREE = ("--keep-first", "0", "--keep-last", "0")
LAYER = 3 * 24 * 24 + 3 * 24 * 40 + 2 * 24  # parameters of one of the tiny model's two


class TestPruneAgain:
    @pytest.mark.parametrize("save_as", but_slow(["auto", "graph"], "auto"))
    def test_every_folder_that_it_writes(
        self, run: Any, folder: Path, tmp_path: Path, save_as: str
    ) -> None:
        """Layers of their own sizes, or a graph; scored, cut, saved, and once more."""
        words = ("--ratio", "0.1", "--save-as", save_as)
        parameters = [tiny.PARAMETERS]
        for number, source in enumerate((folder, tmp_path / "0", tmp_path / "1")):
            ran = run("prune", source, "--out", tmp_path / str(number), *words, *QUICK)
            assert ran.status == 0, ran.err
            assert "proof:" in ran.out
            report = json.loads((tmp_path / str(number) / "report.json").read_text())
            assert report["criterion"].startswith("OBS(")
            assert report["before"]["parameters"] == parameters[-1]
            small = fxprune.load(tmp_path / str(number))
            parameters.append(sum(p.numel() for p in small.parameters()))
            assert isinstance(small, torch.fx.GraphModule) == (save_as == "graph")
        ratios = [after / before for before, after in pairwise(parameters)]
        assert all(0.88 < ratio <= 0.9 for ratio in ratios)

    def test_a_graph_is_no_checkpoint(self, run: Any, folder: Path, tmp_path: Path) -> None:
        words = ("--ratio", "0.1", "--criterion", "magnitude", *QUICK)
        run("prune", folder, "--out", tmp_path / "g", "--save-as", "graph", *words)
        ran = run(
            "prune", tmp_path / "g", "--out", tmp_path / "s", "--save-as", "transformers", *words
        )
        assert ran.status == 2
        assert "this folder holds a graph" in ran.err


class TestPruneForAnEngine:
    def test_stock(self, run: Any, folder: Path, tmp_path: Path) -> None:
        words = ("--ratio", "0.2", "--criterion", "magnitude", "--compensate", "none", *QUICK)
        ran = run("prune", folder, "--out", tmp_path / "a", "--for", "transformers", *words)
        assert ran.status == 0, ran.err
        assert "of the score is lost than freely" in ran.out
        report = json.loads((tmp_path / "a" / "report.json").read_text())
        assert report["config"]["target"] == "transformers"
        assert report["target"]["name"] == "transformers"
        assert report["target"]["lost"] > 0
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
        ran = run("prune", folder, "--out", tmp_path / "b", "--for", "transformer", *words)
        assert (ran.status, "did you mean transformers" in ran.err) == (2, True)
        local = ("--ranking", "local", "--for", "transformers")
        ran = run("prune", folder, "--out", tmp_path / "b", *local, *words)
        assert ran.status == 2
        assert "transformers has one number of units for all layers" in ran.err
        assert not (tmp_path / "b").exists()


class TestPruneDepth:
    def test_blocks_alone(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--remove-blocks", "1", "--criterion", "ppl", *FREE)
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert plan.criterion == "PPL(), one-shot"
        assert not plan.kept
        assert len(plan.removed) == 1
        assert plan.parameters_after == tiny.PARAMETERS - LAYER
        assert f"removed: {plan.removed[0]}" in ran.out
        assert "scanning 2 units" in ran.err
        assert "least-squares compensation of 7 consumers" in ran.out
        for shown in ("10,848", "perplexity", "latency", "proof:"):
            assert shown in ran.out
        small = fxprune.load(tmp_path / "s")
        assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
        report = json.loads((tmp_path / "s" / "report.json").read_text())
        assert report["after"]["parameters"] == plan.parameters_after
        assert report["criterion"] == "PPL(), one-shot"
        assert report["config"]["depth"]["remove"] == 1
        assert "pruning_ratio" not in report["config"]
        # Perplexity is what is looked at where nothing is said.
        alone = (*options[:2], *FREE, *QUICK, "--compensate", "none")
        ran = run("prune", folder, "--out", tmp_path / "t", *alone)
        assert ran.status == 0, ran.err
        assert "compensation" not in ran.out
        assert fxprune.Plan.load(tmp_path / "t" / "plan.json") == plan

    def test_branches_greedily(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--remove-blocks", "2", "--unit", "attention", "--greedy", *FREE)
        options += ("--criterion", "block-influence", "--no-verify")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert plan.removed == tuple(f"model.layers.{i}:attention" for i in (0, 1))
        assert plan.criterion == "BlockInfluence(), greedy"
        assert plan.parameters_after == tiny.PARAMETERS - 2 * (3 * 24 * 24 + 24)
        assert "1 removed, scoring what is left" in ran.err
        report = json.loads((tmp_path / "s" / "report.json").read_text())
        assert report["config"]["depth"]["schedule"] == "greedy"
        assert report["config"]["depth"]["unit"] == "attention"

    def test_blocks_and_units(self, run: Any, folder: Path, tmp_path: Path) -> None:
        options = ("--remove-ratio", "0.2", "--depth-criterion", "magnitude", *FREE)
        options += ("--ratio", "0.4", "--criterion", "flap", "--compensation-samples", "4")
        ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert len(plan.removed) == 1
        assert plan.kept
        assert plan.criterion == repr(fxprune.FLAP())
        assert plan.parameters_before == tiny.PARAMETERS
        assert 0.57 * tiny.PARAMETERS < plan.parameters_after <= 0.6 * tiny.PARAMETERS
        assert "least-squares compensation of" in ran.out
        assert "proof:" in ran.out

    def test_schedules_without_scores_need_no_data(
        self, run: Any, folder: Path, tmp_path: Path
    ) -> None:
        ran = run("prune", folder, "--out", tmp_path / "s", "--schedule", "alternate", *QUICK)
        assert ran.status == 0, ran.err
        plan = fxprune.Plan.load(tmp_path / "s" / "plan.json")
        assert plan.removed == ("model.layers.1:block",)
        assert plan.criterion == "alternate"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ("--criterion", "ppl", "--ratio", "0.2"),
                "'ppl' scores blocks and branches, and units of groups",
            ),
            (
                ("--criterion", "ppl", "--ratio", "0.2", "--remove-blocks", "1"),
                "give it as --depth-criterion, with depth=",
            ),
            (
                ("--remove-blocks", "1", "--greedy", "--schedule", "run"),
                "--greedy and --schedule run are two schedules",
            ),
            (
                ("--depth-criterion", "ppl"),
                "--depth-criterion scores blocks and branches: say how many go",
            ),
            (
                ("--greedy",),
                "say how much goes: either --remove-blocks, a number of units, or --remove-ratio",
            ),
            (
                ("--unit", "attention"),
                "say how much goes: either --remove-blocks, a number of units, or --remove-ratio",
            ),
            (
                ("--schedule", "first"),
                "say how much goes: either --remove-blocks, a number of units, or --remove-ratio",
            ),
            (("--remove-blocks", "0"), "--remove-blocks 0: a whole number, at least 1"),
            (("--remove-ratio", "1"), "--remove-ratio 1.0 is outside [0, 1)"),
            (("--remove-blocks", "1", "--remove-ratio", "0.2"), "either --remove-blocks, a number"),
            (
                ("--remove-blocks", "1", "--schedule", "alternate"),
                "leave out --remove-blocks and --remove-ratio",
            ),
            (("--remove-blocks", "1", "--schedule", "best"), "no schedule 'best'"),
            (("--remove-blocks", "1", "--unit", "layer"), "no unit 'layer'"),
            (
                ("--remove-blocks", "1", "--unit", "mlp", "--schedule", "run"),
                "run takes blocks, not --unit 'mlp'",
            ),
            (("--remove-blocks", "1", "--criterion", "obs"), "'obs' scores no blocks"),
            (("--remove-blocks", "1", "--depth-criterion", "flap"), "'flap' scores no blocks"),
            (
                ("--remove-blocks", "1", "--criterion", "ppl", "--depth-criterion", "taylor"),
                "only blocks go, by one criterion",
            ),
            (("--remove-blocks", "1", "--steps", "2"), "--steps is for units of groups"),
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

    def test_what_only_the_model_can_refuse(self, run: Any, folder: Path, tmp_path: Path) -> None:
        cases = {
            ("--remove-blocks", "1"): "(block) cannot go: 0 may, 2 more are protected",
            ("--remove-blocks", "3", *FREE): "3 of LlamaForCausalLM's 2 removable units",
            ("--remove-ratio", "0.9", *FREE): "ratio=0.9 cannot be met by removing units (block)",
        }
        for options, message in cases.items():
            ran = run("prune", folder, "--out", tmp_path / "s", *options, *QUICK)
            assert ran.status == 2
            last = [line for line in ran.err.splitlines() if line.strip()][-1]
            assert last.startswith("error: ")
            assert message in last
            assert "scanning" not in ran.err  # nothing was scored for nothing
            assert not (tmp_path / "s").exists()

    def test_perplexity_needs_a_language_model(self, run: Any, tmp_path: Path) -> None:
        config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4)
        config.architectures = ["ViTForImageClassification"]
        config.save_pretrained(tmp_path)
        ran = run("prune", tmp_path, "--out", tmp_path / "s", "--remove-blocks", "1")
        assert ran.status == 2
        assert "not a causal language model, which PPL() needs" in ran.err


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
