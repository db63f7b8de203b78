"""``fxprune eval`` from outside, and what it hands to Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import fxprune
from fxprune.cli.evaluate import evaluate_specs
from fxprune.data.text import Text, joined
from fxprune.errors import CalibrationError, EvaluationError, ModelError
from fxprune.measure import Settings, evaluate, open_subject
from fxprune.measure.perplexity import perplexity, windows
from tests.command_line import run_command
from tests.hf import tiny
from tests.measure import material

PROSE = "\n\n".join(f"This is paragraph number {i}, and it is short." for i in range(30))
QUICK = ("--new", "4", "--prompt", "3", "--rounds", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("COLUMNS", "140")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, "eval", *arguments)

    return call


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = fxprune.prune(
        tiny.llama(), budget=fxprune.Budget(units=0.5), criterion=fxprune.Magnitude(), verify=False
    )
    folder = tmp_path_factory.mktemp("models") / "pruned"
    return fxprune.save(
        result.graph_module,
        folder,
        plan=result.plan,
        traced=result.traced,
        tokenizer=tiny.tokenizer(),
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (file := tmp_path_factory.mktemp("text") / "prose.txt").write_text(PROSE)
    return file


def test_everything(run: Any, dense: Path, text: Path, tmp_path: Path) -> None:
    task = material.write(tmp_path / "a.jsonl", material.arc())
    status, out, err = run(
        dense,
        *("--text", text, "--length", "16,32", "--stride", "8", "--windows", "5"),
        *("--tasks", f"arc_easy={task}", "--limit", "4", *QUICK, "--batch-sizes", "1,2"),
        *("--json", tmp_path / "e.json", "--markdown", tmp_path / "e.md"),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "e.json").read_text())
    assert found["parameters"] == tiny.PARAMETERS
    assert found["kv_cache"] == 192
    assert found["model"]["name"] == "tiny"
    assert found["settings"]["stride"] == 8
    assert [(x["length"], x["score"]["windows"]) for x in found["perplexities"]] == [
        (16, 5),
        (32, 5),
    ]
    assert [(x["task"], x["metric"], x["n"]) for x in found["tasks"]] == [
        ("arc_easy", "acc", 4),
        ("arc_easy", "acc_norm", 4),
    ]
    assert all(0 < x["stderr"] < 1 or x["value"] in (0, 1) for x in found["tasks"])
    assert [(x["kind"], x["batch"]) for x in found["speeds"]] == [
        ("forward", 1),
        ("generate", 1),
        ("forward", 2),
        ("generate", 2),
    ]
    page = (tmp_path / "e.md").read_text()
    for words in ("| arc_easy | acc |", "| prose.txt | none | 16 | 8 | 5 |", "15,504", "| 192 |"):
        assert words in page
    assert "arc_easy" in out
    assert "15,504" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "e.json", "e.md"]


def test_a_pruned_graph(run: Any, pruned: Path, text: Path, tmp_path: Path) -> None:
    status, out, err = run(pruned, "--text", text, *QUICK, "--json", tmp_path / "e.json")
    assert status == 0, err
    found = json.loads((tmp_path / "e.json").read_text())
    graph = fxprune.load(pruned)
    ids = windows(joined(tiny.tokenizer(), Text("", (PROSE,))), 128)
    assert found["perplexities"][0]["score"]["perplexity"] == pytest.approx(
        perplexity(graph, ids).perplexity
    )
    assert found["kv_cache"] == 96
    assert [x["kind"] for x in found["speeds"]] == ["forward"]
    assert "no generation: a GraphModule has no generate()" in out


def test_layers_of_their_own_sizes(run: Any, pruned: Path, text: Path, tmp_path: Path) -> None:
    """The same plan for one layer only, as a transformers model: all rows are there."""
    model = tiny.llama()
    whole = fxprune.Plan.load(pruned / "plan.json")
    graph = fxprune.discover(fxprune.trace(model))
    plan = fxprune.Plan.of(graph, {n: k for n, k in whole.kept.items() if ".1." in n})
    small = fxprune.shrink(model, plan)
    folder = fxprune.save(small, tmp_path / "m", tokenizer=tiny.tokenizer())
    status, _, err = run(
        folder, "--text", text, *QUICK, "--dtype", "bfloat16", "--json", tmp_path / "e.json"
    )
    assert status == 0, err
    found = json.loads((tmp_path / "e.json").read_text())
    ids = windows(joined(tiny.tokenizer(), Text("", (PROSE,))), 128)
    expected = perplexity(small.bfloat16(), ids).perplexity
    assert found["perplexities"][0]["score"]["perplexity"] == pytest.approx(expected)
    assert found["parameters"] == plan.parameters_after
    assert found["kv_cache"] == 48 + 24  # bfloat16; the second layer has half
    assert [x["kind"] for x in found["speeds"]] == ["forward", "generate"]


def test_costs_alone(run: Any, dense: Path) -> None:
    status, out, _ = run(dense, "--no-generation")
    assert status == 0
    assert "15,504" in out
    assert not any(word in out for word in ("latency", "perplexity", "metric"))


def test_several_models(run: Any, dense: Path, pruned: Path, text: Path, tmp_path: Path) -> None:
    """One table, timed in turns, on text, answers and continuations that all of them saw."""
    task = material.write(tmp_path / "a.jsonl", material.arc())
    status, out, err = run(
        dense,
        pruned,
        *("--quick", "--text", text, "--length", "16", "--tasks", f"arc_easy={task}", *QUICK),
        *("--json", tmp_path / "e.json", "--markdown", tmp_path / "e.md"),
        *("--html", tmp_path / "e.html"),
    )
    assert status == 0, err
    found = json.loads((tmp_path / "e.json").read_text())
    one, other = found["models"]
    assert [each["model"]["name"] for each in (one, other)] == ["tiny", "pruned"]
    assert one["in_turns"]
    assert one["settings"]["windows"] == 32
    assert [len(each["tasks"][0]["answers"]) for each in (one, other)] == [6, 6]
    assert sum(one["tasks"][0]["answers"]) / 6 == pytest.approx(one["tasks"][0]["value"])
    assert len(one["continuations"][0]["repeated"]) == 16
    assert not other["continuations"]  # it has no cache to generate with
    figures = [(each["figure"], each["of"]) for each in found["differences"]]
    assert figures == [("perplexity", "prose.txt"), ("acc", "arc_easy"), ("acc_norm", "arc_easy")]
    page = (tmp_path / "e.md").read_text()
    assert "|  | tiny | pruned |" in page
    assert "pruned: no generation, a GraphModule has no generate()" in out
    html = (tmp_path / "e.html").read_text()
    for words in ("<svg", "prose.txt @ 16", "arc_easy, acc", "Side by side"):
        assert words in html


def test_models_of_one_name(dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path / "tiny")
    both = [str(dense), str(tmp_path / "tiny")]
    settings = Settings(generation=False)
    found = evaluate_specs(both, settings=settings, progress=False).found
    assert [each.model["name"] for each in found] == both
    with pytest.raises(EvaluationError, match="is given twice"):
        evaluate_specs([*both, both[0]], settings=settings)


def test_timed_one_after_the_other_where_memory_is_short(
    dense: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxprune.cli.workflow.room_for", lambda size, device: False)
    settings = Settings(prompt=3, new=4, rounds=1)
    found = evaluate_specs([str(dense), str(pruned)], settings=settings, progress=False)
    assert not any(each.in_turns for each in found.found)
    (note,) = (section.note for section in found.sections if section.title == "Speed")
    assert "one model after the other" in note


def test_quick_without_text(run: Any, dense: Path) -> None:
    status, out, err = run(dense, "--quick", "--table", "--no-generation", "--length", "16")
    assert status == 0, err
    assert "Python's language reference, evaluation topics @ 16" in out
    assert "distinct-3" in out


def test_domains(dense: Path, tmp_path: Path) -> None:
    rows = [{"text": PROSE, "meta": {"set": name}} for name in ("web", "books", "web")]
    file = material.write(tmp_path / "t.jsonl", rows)
    settings = Settings((16,), generation=False, windows=2)
    measured = evaluate_specs(
        [str(dense)], [file], settings=settings, domain="meta.set", progress=False
    )
    assert [p.text for p in measured.found[0].perplexities] == ["t.jsonl, books", "t.jsonl, web"]


def test_in_python_without_a_folder() -> None:
    settings = Settings(lengths=(16,), generation=False)
    found = evaluate(
        tiny.llama(), tiny.tokenizer(), texts=[Text("prose", (PROSE,))], settings=settings
    )
    assert found.model["name"] == "LlamaForCausalLM"
    assert found.perplexities[0].score.windows == len(PROSE) // 16
    assert found.no_generation == "not asked for"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "none.txt"), "none.txt cannot be read"),
        (("--tasks", "arc_easy=none.jsonl"), "none.jsonl cannot be read"),
        (("--tasks", "no_such_task_at_all"), "lm-eval has no task"),
        (("--length", "x"), "--length 'x': numbers with commas"),
        (("--length", "1"), "take at least 2 tokens"),
        (("--bos", "always"), "auto, window, none"),
        (("--stride", "0"), "stride 0: take at least 1"),
        (("--limit", "0"), "limit 0"),
        (("--batch-sizes", "0"), "at least 1 row"),
        (("--num-fewshot", "-1"), "take 0 or more"),
        (("--dtype", "int8"), "no dtype 'int8'"),
        (("--device", "nowhere"), "device 'nowhere' cannot be used"),
        (("--json", "no/such/folder.json"), "no folder"),
        (("--html", "no/such/folder.html"), "no folder"),
        (("--continuations", "4"), "continuations begin with text: give --text, or --quick"),
        (("--continuations", "-1"), "continuations -1: take at least 0"),
        (("nowhere",), "nowhere"),
    ],
)
def test_refused_before_anything_is_loaded(
    run: Any, dense: Path, nothing_loads: None, options: tuple[str, ...], message: str
) -> None:
    status, out, err = run(dense, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_text_given_twice(dense: Path, text: Path, nothing_loads: None) -> None:
    with pytest.raises(CalibrationError, match="given twice"):
        evaluate_specs([str(dense)], [text, str(text)])


def test_two_texts_of_one_name(dense: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / text.name).write_text(PROSE * 2)
    (found,) = evaluate_specs(
        [str(dense)],
        [text, tmp_path / text.name],
        settings=Settings(lengths=(32,), generation=False, windows=2),
        progress=False,
    ).found
    assert [x.text for x in found.perplexities] == [text.name, str(tmp_path / text.name)]


def test_text_too_short_or_windows_too_long(run: Any, dense: Path, tmp_path: Path) -> None:
    (file := tmp_path / "short.txt").write_text("Too short.")
    status, _, err = run(dense, "--text", file)
    assert status == 2
    assert "short.txt: the evaluation text has 10 tokens, a window needs 128" in err
    status, _, err = run(dense, "--text", file, "--length", "4096")
    assert "windows of 4096 tokens: the model takes 2048 at most" in err


class TestOpening:
    def test_a_graph(self, pruned: Path) -> None:
        found = open_subject(pruned)
        assert isinstance(found.model, torch.fx.GraphModule)
        assert found.name == "pruned"
        assert found.config.vocab_size == tiny.VOCABULARY
        with pytest.raises(ModelError, match="dtype it was saved in"):
            open_subject(pruned, dtype=torch.bfloat16)

    def test_without_a_tokenizer(self, pruned: Path, tmp_path: Path) -> None:
        shutil.copytree(pruned, tmp_path / "p")
        for file in (tmp_path / "p").glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelError, match="no tokenizer"):
            open_subject(tmp_path / "p")

    def test_what_predicts_no_text(self, tmp_path: Path) -> None:
        config = BertConfig(
            vocab_size=99,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
        )
        BertForMaskedLM(config).save_pretrained(tmp_path)
        with pytest.raises(EvaluationError, match="BertForMaskedLM is not a causal language model"):
            open_subject(tmp_path)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2(tmp_path: Path) -> None:
    """Knows that ice is cold better than chance, and caches what its config says."""
    records = [
        {"goal": f"To cool a drink, add {x}.", "sol1": "ice", "sol2": "hot coals", "label": 0}
        for x in ("some", "a bit of", "two cups of", "more")
    ]
    file = material.write(tmp_path / "p.jsonl", records)
    (found,) = evaluate_specs(
        ["smollm2"], [], [f"piqa={file}"], settings=Settings(generation=False), progress=False
    ).found
    assert found.kv_cache == 30 * 2 * 3 * 64 * 4
    assert found.parameters == 134_515_008
    assert next(x for x in found.tasks if x.metric == "acc").value > 0.5
