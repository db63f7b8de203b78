"""The same figures as lm-eval called directly, for models and for graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.hf.open.quiet import quiet
from fxprune.measure.tasks import TaskScore, TaskSpec, load, run
from tests.hf import tiny
from tests.measure import material


def directly(model: Any, name: str, file: Path, limit: int | None = None) -> dict[str, Any]:
    """lm-eval alone: its config, with the data read by ``datasets``."""
    with quiet():
        import lm_eval
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.tasks._yaml_loader import load_yaml

        (source,) = (Path(lm_eval.__file__).parent / "tasks").glob(f"**/{name}.yaml")
        config = load_yaml(source, resolve_func=True)
        splits = ("train", "validation", "test")
        config["dataset_path"], config["dataset_name"] = "json", None
        config["dataset_kwargs"] = {"data_files": dict.fromkeys(splits, str(file))}
        found: Any = evaluator.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=2),
            tasks=[config],
            limit=limit,
            task_manager=TaskManager(include_defaults=False),
        )
    return {**found["results"][name], "n": found["n-samples"][name]["effective"]}


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_equals_lm_eval_called_directly(
    name: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import evaluator

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # runs pip
    records = material.arc() if name == "arc_easy" else material.piqa()
    file, model = material.write(tmp_path / "data.jsonl", records), tiny.llama()
    loaded = load([TaskSpec(name, file)])
    found = run(model, tiny.tokenizer(), None, loaded, limit=limit, batch_size=3, progress=False)
    expected = directly(model, name, file, limit)
    assert [score.metric for score in found] == ["acc", "acc_norm"]
    for score in found:
        assert (score.task, score.data) == (name, str(file))
        assert score.value == expected[f"{score.metric},none"]
        assert score.stderr == expected[f"{score.metric}_stderr,none"]
        assert score.n == expected["n"] == (limit or len(records))
        assert (score.examples, score.version) == (0, "1.0")


def test_a_graph_gives_what_its_model_gives(tmp_path: Path) -> None:
    model = tiny.llama()
    traced = fxprune.trace(model)
    same = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    assert isinstance(same, torch.fx.GraphModule)
    file = material.write(tmp_path / "data.jsonl", material.arc(8))
    tokenizer = tiny.tokenizer()

    def scores(module: Any, config: Any) -> list[TaskScore]:
        return run(module, tokenizer, config, load([TaskSpec("arc_easy", file)]), progress=False)

    expected = scores(model, None)
    assert scores(same, model.config) == expected
    assert scores(same, None) == expected
    assert tokenizer.pad_token is None  # lm-eval sets one, on a copy


def test_progress_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = material.write(tmp_path / "data.jsonl", material.arc(2))
    run(tiny.llama(), tiny.tokenizer(), None, load([TaskSpec("arc_easy", file)]))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "tasks: arc_easy ...\n")
