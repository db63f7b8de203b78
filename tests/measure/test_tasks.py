"""Tasks of lm-eval with local data: the config is its own, what does not fit is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fxprune.errors import EvaluationError
from fxprune.measure import tasks
from fxprune.measure.tasks import TaskSpec, load, parse, run
from tests.hf import tiny
from tests.measure import material


def test_typed() -> None:
    assert parse(["arc_easy, piqa=a/b.jsonl", "boolq"]) == [
        TaskSpec("arc_easy"),
        TaskSpec("piqa", Path("a/b.jsonl")),
        TaskSpec("boolq"),
    ]
    for wrong in ("", "arc_easy=", "=f.jsonl", "a,,b"):
        with pytest.raises(EvaluationError, match=r"write NAME or NAME=FILE.jsonl"):
            parse([wrong])
    with pytest.raises(EvaluationError, match="twice"):
        parse(["arc_easy", "arc_easy=x.jsonl"])


def test_the_config_is_lm_evals_own_and_the_data_is_the_file(tmp_path: Path) -> None:
    file = material.write(tmp_path / "a.jsonl", material.arc())
    loaded = load([TaskSpec("arc_easy", file)])
    assert loaded.data == {"arc_easy": str(file)}
    (task,) = loaded.built
    assert task.task_name == "arc_easy"
    assert [doc["id"] for doc in task.eval_docs] == list("012345")
    assert task.doc_to_text(task.eval_docs[0]) == "Question: Which colour is number 0?\nAnswer:"
    assert task.doc_to_target(task.eval_docs[1]) == 1
    own = tasks._manager().task_index["arc_easy"].cfg
    for field in ("doc_to_text", "doc_to_target", "doc_to_choice", "metric_list", "test_split"):
        assert task.get_config(field) == own[field], field


def test_several_from_different_folders(tmp_path: Path) -> None:
    arc = material.write(tmp_path / "a.jsonl", material.arc())
    piqa = material.write(tmp_path / "p.jsonl", material.piqa())
    loaded = load([TaskSpec("piqa", piqa), TaskSpec("arc_easy", arc)])
    assert [task.task_name for task in loaded.built] == list(loaded.data) == ["piqa", "arc_easy"]


def test_strings_that_look_like_dates_stay_strings(tmp_path: Path) -> None:
    records = material.piqa(2)
    for record in records:
        record["sol2"] = "1999-12-31"
    (task,) = load([TaskSpec("piqa", material.write(tmp_path / "p.jsonl", records))]).built
    assert task.doc_to_choice(task.eval_docs[0])[1] == "1999-12-31"


def test_groups_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is run as one, with a score of its own; a tag stands for its tasks."""
    import datasets

    records = [{"question": "q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}]
    rows = datasets.Dataset.from_list(records)
    splits = datasets.DatasetDict(dict.fromkeys(("train", "dev", "validation", "test"), rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    found = load([TaskSpec("mmlu_stem")])
    assert [group.name for group in found.built] == ["mmlu_stem"]
    assert len(found.data) == 19
    scores = run(tiny.llama(), tiny.tokenizer(), None, found, limit=1, progress=False)
    assert len(scores) == 20
    assert scores[0].data == "cais/mmlu abstract_algebra"
    assert (scores[-1].task, scores[-1].data, scores[-1].n) == ("mmlu_stem", "", 19)
    with pytest.raises(EvaluationError, match="given twice, once within mmlu_stem"):
        load([TaskSpec("mmlu_astronomy"), TaskSpec("mmlu_stem")])
    arc = datasets.DatasetDict(
        dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(material.arc()))
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: arc)
    found = load([TaskSpec("ai2_arc")])
    assert [task.task_name for task in found.built] == ["arc_challenge", "arc_easy"]
    assert found.data["arc_easy"] == "allenai/ai2_arc ARC-Easy"


def test_a_group_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="mmlu_stem stands for several tasks"):
        load([TaskSpec("mmlu_stem", material.write(tmp_path / "a.jsonl", material.arc()))])


def test_unknown_task() -> None:
    with pytest.raises(EvaluationError, match=r"no task 'arc_esay'; did you mean arc_easy"):
        load([TaskSpec("arc_esay")])


def test_a_dataset_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(EvaluationError, match=r"arc_easy cannot be loaded: no hub.*FILE.jsonl"):
        load([TaskSpec("arc_easy")])


def test_examples_do_not_come_from_what_is_measured(tmp_path: Path) -> None:
    file = material.write(tmp_path / "a.jsonl", material.arc())
    with pytest.raises(EvaluationError, match=r"a.jsonl, which is measured"):
        load([TaskSpec("arc_easy", file)], num_fewshot=2)
    assert load([TaskSpec("arc_easy", file)], num_fewshot=0)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_manager", tasks._manager.__wrapped__)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(EvaluationError, match="pip install 'lm-eval"):
        load([TaskSpec("arc_easy")])


class TestRows:
    def wrong(self, tmp_path: Path, change: Any, name: str = "arc_easy") -> str:
        records = material.piqa() if name == "piqa" else material.arc()
        change(records[2])
        file = material.write(tmp_path / "data.jsonl", records)
        with pytest.raises(EvaluationError) as caught:
            load([TaskSpec(name, file)])
        return str(caught.value)

    def test_a_line_without_a_column(self, tmp_path: Path) -> None:
        said = self.wrong(tmp_path, lambda record: record.pop("answerKey"))
        assert "data.jsonl line 3 does not fit arc_easy: 'answerKey' is undefined" in said
        assert "it has id, question, choices" in said
        said = self.wrong(tmp_path, lambda record: record.pop("question"))
        assert "line 3 does not fit arc_easy: 'question' is undefined" in said

    def test_a_column_named_without_a_template(self, tmp_path: Path) -> None:
        said = self.wrong(tmp_path, lambda record: record.pop("label"), "piqa")
        assert "line 3 has no column 'label', which piqa reads; it has goal, sol1, sol2" in said

    def test_an_answer_that_is_no_choice(self, tmp_path: Path) -> None:
        said = self.wrong(tmp_path, lambda record: record.update(answerKey="Z"))
        assert "data.jsonl line 3 does not fit arc_easy: 'Z' is not in list" in said
        said = self.wrong(tmp_path, lambda record: record.update(label=2), "piqa")
        assert "line 3 does not fit piqa: answer 2 of 2 choices" in said

    def test_the_first_line_is_wrong(self, tmp_path: Path) -> None:
        records = material.arc()
        records[0]["answerKey"] = "Z"
        file = material.write(tmp_path / "data.jsonl", records)
        with pytest.raises(EvaluationError, match=r"data.jsonl does not fit arc_easy"):
            load([TaskSpec("arc_easy", file)])

    def test_of_another_kind(self, tmp_path: Path) -> None:
        said = self.wrong(tmp_path, lambda record: record.update(choices="red"))
        assert "data.jsonl does not fit arc_easy" in said

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "has no lines"),
            ("\n{\n", "line 2 is not JSON"),
            ("[1]\n", "line 1 is not a JSON object"),
        ],
    )
    def test_unreadable(self, tmp_path: Path, content: str, message: str) -> None:
        (file := tmp_path / "x.jsonl").write_text(content)
        with pytest.raises(EvaluationError, match=message):
            tasks._read(file)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="cannot be read"):
            tasks._read(tmp_path / "none.jsonl")

    def test_line_numbers_skip_blank_lines(self, tmp_path: Path) -> None:
        (file := tmp_path / "x.jsonl").write_text('\n{"a": 1}\n\n{"a": "\u2028"}\n')
        assert list(tasks._read(file)) == [2, 4]

    def test_no_line_has_the_column(self, tmp_path: Path) -> None:
        """Its name must not be taken for the answer itself."""
        records = material.piqa()
        for record in records:
            del record["label"]
        file = material.write(tmp_path / "data.jsonl", records)
        with pytest.raises(EvaluationError, match="line 1 has no column 'label'"):
            load([TaskSpec("piqa", file)])

    def test_rows_that_a_function_reads_are_alike(self, tmp_path: Path) -> None:
        keys = ("ind", "activity_label", "ctx_a", "ctx_b", "endings", "label")
        records: list[dict[str, Any]] = [
            dict(zip(keys, (i, "a", "b", "c", ["d"] * 4, "0"), strict=True)) for i in range(2)
        ]
        file = material.write(tmp_path / "x.jsonl", records)
        assert load([TaskSpec("hellaswag", file)])
        del records[1]["ind"]
        material.write(file, records)
        with pytest.raises(EvaluationError, match=r"line 2 has no column 'ind', which the first"):
            load([TaskSpec("hellaswag", file)])
