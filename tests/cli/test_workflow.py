"""What commands share: which text goes where, and what a graph of fixed sizes costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.cli import workflow
from fxprune.config import PruneConfig
from fxprune.data.text import OWN, builtin, crops, read
from fxprune.errors import CalibrationError, FxpruneWarning, ModelError
from fxprune.hf.folder import checkpoint
from fxprune.hf.open.load import load
from fxprune.hf.open.models import load_model
from fxprune.importance import Scores
from fxprune.plan import Plan
from tests.hf import tiny


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    made = (tmp_path / "a.jsonl", tmp_path / "b.txt")
    made[0].write_text("\n".join(json.dumps({"text": word * 9}) for word in "wxyz"))
    made[1].write_text("measure on this")
    return made


def test_no_file_takes_the_prose_inside_python() -> None:
    assert workflow.texts(None, None) == builtin()


def test_the_models_own_text_calibrates_and_other_text_measures(files: tuple[Path, Path]) -> None:
    assert workflow.texts(Path("self"), None) == (OWN, builtin()[1])
    assert workflow.texts(Path("self"), files[1]) == (OWN, read(files[1]))
    loaded = load_model("smollm2", meta=True)
    assert workflow.own(loaded, OWN, Path("self")) is OWN
    vision = replace(loaded, model=nn.Identity())
    with pytest.raises(CalibrationError, match="cannot write its own calibration text"):
        workflow.own(vision, OWN, Path("self"))


def test_one_file_is_halved(files: tuple[Path, Path]) -> None:
    calibration, evaluation = workflow.texts(files[0], None)
    assert calibration.records == ("w" * 9, "x" * 9)
    assert evaluation.records == ("y" * 9, "z" * 9)


def test_two_files_are_taken_whole(files: tuple[Path, Path]) -> None:
    assert workflow.texts(*files) == (read(files[0]), read(files[1]))
    assert workflow.texts(None, files[1]) == (builtin()[0], read(files[1]))


def test_one_file_under_two_names(files: tuple[Path, Path]) -> None:
    with pytest.raises(CalibrationError, match="cannot both calibrate and measure"):
        workflow.texts(files[0], files[0].parent / "." / files[0].name)


def test_language_model_without_tokenizer(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "m", with_tokenizer=False)
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(str(tmp_path / "m"))


def test_static_graph_is_recognised() -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    dynamic = {"x": {0: torch.export.Dim.AUTO}}
    for shapes, static in ((dynamic, False), (None, True)):
        exported = torch.export.export(Double(), (torch.ones(3, 4),), dynamic_shapes=shapes)
        graph = exported.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        assert workflow.is_static(graph) == static


def test_sizes_that_a_model_fixes_itself_are_static() -> None:
    class Three(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(3, 4) * 2

    with pytest.warns(FxpruneWarning, match="is fixed at 3"):
        traced = fxprune.trace(Three(), (torch.ones(3, 4),))
    assert workflow.is_static(traced.graph_module)


def test_what_needs_data() -> None:
    assert workflow.needing_data(PruneConfig()) == [repr(fxprune.Taylor())]
    assert workflow.needing_data(PruneConfig(criterion="magnitude")) == []
    both = PruneConfig(criterion="wanda-sp", compensation="bias")
    assert workflow.needing_data(both) == [repr(fxprune.WandaSP()), "bias"]
    assert workflow.needing_data(PruneConfig(), scored=True) == []


def test_what_needs_data_in_depth() -> None:
    depth = fxprune.Depth(remove=1)
    assert workflow.needing_data(PruneConfig(depth=depth)) == ["PPL()"]
    weights = PruneConfig(depth=depth, criterion="magnitude")
    assert workflow.needing_data(weights) == []
    both = PruneConfig(
        depth=depth, pruning_ratio=0.2, criterion="flap", depth_criterion="block-influence"
    )
    assert workflow.needing_data(both) == [repr(fxprune.FLAP()), "BlockInfluence()"]
    fixed = PruneConfig(depth=fxprune.Depth(schedule="alternate"))
    assert workflow.needing_data(fixed) == []


def test_limits_in_few_lines() -> None:
    removed = Plan({}, {}, "", removed=("layers.3:block", "layers.5:mlp"))
    assert workflow.limits(removed) == ["removed: layers.3:block, layers.5:mlp"]
    kept = {f"layers.{i}:units": "min_kept=1" for i in range(9)}
    plan = Plan({}, {}, "", limits={**kept, "other": "override 0.5"}, bound="macs")
    assert workflow.limits(plan) == [
        "bound by: macs",
        "min_kept=1: layers.0:units and 8 more",
        "override 0.5: other",
    ]
    assert workflow.limits(Plan({}, {}, "")) == []


def test_crops_of_the_criterion_are_the_first_of_those_of_compensation() -> None:
    calibration, _ = builtin()
    few, many = (crops(tiny.tokenizer(), calibration, n, 16, seed=3) for n in (3, 9))
    assert torch.equal(few, many[:3])


def test_scores_are_there_even_if_saving_the_model_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises(OSError, match="no space"):
        workflow.run(
            load_model(tiny.folder(tmp_path / "m")),
            PruneConfig(criterion="magnitude"),
            tmp_path / "out",
            calibration=None,
            evaluation=None,
            windows=(4, 16),
            reload=tiny.llama,
            save_scores=tmp_path / "scores.safetensors",
            progress=False,
        )
    saved = Scores.load(tmp_path / "scores.safetensors")
    assert saved.criterion == repr(fxprune.Magnitude())


def test_static_graph_is_saved_but_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "is_static", lambda graph: True)
    outcome = workflow.run(
        load_model(tiny.folder(tmp_path / "m")),
        PruneConfig(criterion="magnitude"),
        tmp_path / "out",
        calibration=None,
        evaluation=None,
        windows=(4, 16),
        reload=tiny.llama,
        progress=False,
    )
    assert outcome.after.parameters < outcome.before.parameters
    assert outcome.after.macs is None
    assert outcome.after.latency is None
    assert (tmp_path / "out" / "model.safetensors").is_file()
