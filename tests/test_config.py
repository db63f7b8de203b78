"""One configuration: it checks itself, and comes back from JSON and YAML as it was."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune import Budget, Depth, PruneConfig
from fxprune.errors import (
    CalibrationError,
    ConfigError,
    CriterionError,
    DepthError,
    FxpruneError,
    SelectionError,
)

FREE = Depth(remove=1)


def test_defaults_are_fine() -> None:
    config = PruneConfig()
    assert config.goal() == {"pruning_ratio": 0.2}
    assert config.make_criterion() == fxprune.OBS()
    assert config.make_criterion(causal=False) == fxprune.Taylor()
    assert config.compensation == "auto"
    PruneConfig(pruning_ratio=0.0)
    PruneConfig(pruning_ratio=0.999, kinds="channel", ranking="global", criterion="random")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning_ratio": 1.0}, r"outside \[0, 1\)"),
        ({"pruning_ratio": -0.1}, r"outside \[0, 1\)"),
        ({"pruning_ratio": math.nan}, r"outside \[0, 1\)"),
        ({"pruning_ratio": 20}, r"did you mean 0.2\?"),
        ({"pruning_ratio": "120%"}, r"outside \[0, 1\)"),
        ({"pruning_ratio": "a fifth"}, "give a number in"),
        ({"ranking": "best"}, "ranking='best': choose from local, global"),
        ({"normalise": "best"}, "normalise='best': choose from kind"),
        ({"kinds": ("mlp", "heads")}, "unknown kind 'heads': choose from mlp, attention"),
        ({"kinds": ()}, "no kinds: choose from"),
        ({"keep_first": -1}, "keep_first=-1: a whole number, at least 0"),
        ({"min_kept": 0}, "min_kept=0"),
        ({"min_kept": {"mlp": 1.5}}, "min_kept=1.5: a whole number, at least 1"),
        ({"max_ratio": 50}, r"max_ratio=50 is outside \[0, 1\): .*did you mean 0.5"),
        ({"layers": "9-3"}, "layers='9-3': numbers of layers"),
        ({"calibration_samples": 0}, "calibration_samples=0: a whole number, at least 1"),
        ({"calibration_lengths": (128, 1)}, "at least 2 tokens"),
        ({"compensation_samples": 0.5}, "compensation_samples=0.5: a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 0}, "steps=0"),
        ({"branches": ("mlp",), "search": "local"}, "give search='measured' too"),
        ({"steps": 2, "search": "local"}, "measures once"),
        ({"steps": 2, "budget": Budget(macs=1e9)}, "macs=1e\\+09 is absolute"),
        (
            {"compensation": "best"},
            "compensation='best': choose from auto, bias, least-squares, blockwise, none",
        ),
        ({"overrides": {"*.3.*": 1.0}}, r"override of '\*\.3\.\*'=1.0 is outside"),
        ({"budget": 0.8}, "takes a fxprune.Budget"),
        ({"depth": 2}, "takes a fxprune.Depth"),
        ({"pruning_ratio": 0.2, "budget": Budget(units=0.2)}, "units= cannot be combined with"),
        ({"pruning_ratio": 0.2, "budget": Budget(params=0.5)}, "two limits: give one"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        PruneConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compensation_scope": "some"}, "scope='some': choose from pruned, all"),
        ({"compensation": "bias", "compensation_scope": "all"}, "is for units that go"),
    ],
)
def test_compensation_is_checked_as_compensate_does(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        PruneConfig(**changes)


def test_percentages_are_fractions() -> None:
    config = PruneConfig(
        pruning_ratio="30%",
        budget=Budget(macs="70%", kv_cache=" 50 % "),
        depth=Depth(ratio="10%"),
        overrides={"*": "25%"},  # type: ignore[dict-item]
    )
    assert config.pruning_ratio == 0.3
    assert config.goal() == {"budget": Budget(params=0.7, macs=0.7, kv_cache=0.5)}
    assert config.depth == Depth(ratio=0.1)
    assert config.overrides == {"*": 0.25}
    assert Budget(units="20%") == Budget(units=0.2)
    # No parameters to remove is not a limit on them.
    assert PruneConfig(pruning_ratio=0, budget=Budget(macs=0.6)).goal() == {
        "budget": Budget(macs=0.6)
    }


def test_criteria() -> None:
    def criterion(given: Any, **more: Any) -> Any:
        return PruneConfig(criterion=given, **more).make_criterion()

    assert criterion("taylor") == fxprune.Taylor()
    assert criterion({"name": "taylor", "order": 2}) == fxprune.Taylor(order=2)
    assert criterion("random", seed=5) == fxprune.Random(5)
    assert criterion(fxprune.FLAP()) == fxprune.FLAP()
    with pytest.raises(CriterionError, match="no criterion 'tailor'; did you mean taylor"):
        criterion("tailor")
    with pytest.raises(CriterionError, match="taylor has no option 'orders': it has aggregate"):
        criterion({"name": "taylor", "orders": 2})
    with pytest.raises(CriterionError, match="not a criterion"):
        criterion(fxprune.Taylor)
    with pytest.raises(CriterionError, match="'ppl' scores blocks and branches, and units of"):
        criterion("ppl")


def test_blocks_alone() -> None:
    config = PruneConfig(depth=Depth(remove=3))
    assert not config.width
    assert config.goal() == {}
    assert config.selection() == {}
    assert config.make_criterion() is None
    assert config.make_depth_criterion() == fxprune.PPL()
    for name, expected in (
        ("block-influence", fxprune.BlockInfluence()),
        ("magnitude", fxprune.Magnitude(p=1)),
        ("random", fxprune.Random(7)),
    ):
        for given in ({"criterion": name}, {"depth_criterion": name}):
            options: dict[str, Any] = {**given, "depth": FREE, "seed": 7}
            assert PruneConfig(**options).make_depth_criterion() == expected
    fixed = PruneConfig(depth=Depth(schedule="alternate"))
    assert fixed.make_depth_criterion() is None
    PruneConfig(depth=FREE, compensation=None)


def test_blocks_and_units() -> None:
    config = PruneConfig(pruning_ratio=0.3, depth=Depth(ratio=0.1), ignore="model.layers.0")
    assert config.width
    assert config.goal() == {"pruning_ratio": 0.3}
    assert config.make_criterion() == fxprune.OBS()
    assert config.make_depth_criterion() == fxprune.PPL()
    assert config.selection()["ignore"] == ("model.layers.0",)
    assert config.blocks() == Depth(ratio=0.1, ignore=("model.layers.0",))
    where: dict[str, Any] = {"only": "model.layers", "layers": range(3, 6)}
    assert PruneConfig(depth=FREE, **where).blocks() == replace(FREE, **where)
    own = replace(FREE, layers="4")
    assert PruneConfig(depth=own, **where).blocks() == replace(own, only="model.layers")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"depth_criterion": "ppl"}, CriterionError, "say how many go"),
        ({"depth": FREE, "criterion": "obs"}, CriterionError, "'obs' scores no blocks and"),
        (
            {"depth": FREE, "criterion": "ppl", "depth_criterion": "magnitude"},
            CriterionError,
            "only blocks go, by one criterion",
        ),
        (
            {"depth": Depth(remove=1, schedule="first"), "criterion": "magnitude"},
            CriterionError,
            "first looks at no scores: leave out magnitude",
        ),
        ({"depth": FREE, "steps": 2}, SelectionError, "steps= is for units of groups"),
        ({"depth": FREE, "multiple_of": 8}, SelectionError, "multiple_of= is for units"),
        ({"depth": FREE, "ranking": "local"}, SelectionError, "ranking= is for units"),
        ({"depth": FREE, "kinds": ("mlp",)}, SelectionError, "kinds= is for units"),
        ({"depth": FREE, "max_ratio": 0.5}, SelectionError, "max_ratio= is for units"),
        ({"depth": FREE, "overrides": {"*": 0.1}}, SelectionError, "overrides= is for units"),
    ],
)
def test_refused_in_depth(changes: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        PruneConfig(**changes)


def test_saved_scores_take_the_place_of_a_criterion() -> None:
    PruneConfig().check_scores()
    with pytest.raises(CriterionError, match="either a criterion or scores="):
        PruneConfig(criterion="obs").check_scores()
    with pytest.raises(SelectionError, match="2 steps need new scores"):
        PruneConfig(steps=2).check_scores()
    with pytest.raises(CriterionError, match="depth alone takes a criterion"):
        PruneConfig(depth=FREE).check_scores()


# As data

EVERYTHING = PruneConfig(
    pruning_ratio="30%",
    budget=Budget(macs="70%", shape=(2, 32)),
    depth=Depth(remove=2, schedule="greedy", keep_first=1),
    criterion=fxprune.Taylor(order=2, aggregate="max"),
    depth_criterion=fxprune.BlockInfluence(),
    kinds=("mlp",),
    ignore=("lm_head", "model.layers.0"),
    only=("model.layers",),
    layers="2-6,9",
    keep_first=1,
    keep_last=2,
    ranking="local",
    normalise="group",
    cost_aware=False,
    overrides={"*.3.*": 0.5},
    multiple_of={"mlp": 8},
    min_kept={"attention": 2},
    max_ratio={"mlp": "40%", "*.3.*": 0.25},
    target="mlx",
    steps=2,
    compensation=None,
    compensation_scope="pruned",
    calibration_samples=12,
    calibration_lengths=(64, 128),
    compensation_samples=24,
    written_samples=6,
    effort="low",
    batch_size=4,
    seed=3,
    verify=False,
)

MEASURED = PruneConfig(search="measured", branches=("mlp",))


@pytest.mark.parametrize("name", ["config.json", "config.yaml"])
@pytest.mark.parametrize(
    "config",
    [
        PruneConfig(),
        EVERYTHING,
        PruneConfig(depth=FREE),
        PruneConfig(criterion="flap-wifn"),
        MEASURED,
    ],
)
def test_what_is_saved_comes_back(tmp_path: Path, config: PruneConfig, name: str) -> None:
    config.save(tmp_path / name)
    again = PruneConfig.load(tmp_path / name)
    assert again.to_dict() == config.to_dict()
    assert again.make_criterion() == config.make_criterion()
    assert again.make_depth_criterion() == config.make_depth_criterion()
    assert (again.goal(), again.selection()) == (config.goal(), config.selection())
    plain = replace(config, criterion=None, depth_criterion=None)
    assert replace(again, criterion=None, depth_criterion=None) == plain
    assert hash(again) == hash(config)


def test_everything_is_tried() -> None:
    """Every field but those that do not go with others is another than its default above."""
    plain = PruneConfig()
    same = {f.name for f in fields(plain) if getattr(plain, f.name) == getattr(EVERYTHING, f.name)}
    assert same == {"groups", "search", "branches", "stream", "max_memory", "vocabulary"}
    streamed = PruneConfig(stream=True, max_memory="6GiB")
    assert streamed.max_memory == 6 * 2**30
    assert PruneConfig.from_dict(streamed.to_dict()) == streamed
    assert PruneConfig(stream=True, max_memory="1.5 MB").max_memory == 1_500_000


def test_a_report_gives_its_configuration_back(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"model": "m", "config": EVERYTHING.to_dict()}))
    assert PruneConfig.load(file).to_dict() == EVERYTHING.to_dict()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("pruning_rato: 0.2", ConfigError, "no field 'pruning_rato'; did you mean pruning_ratio"),
        ("budget: {mac: 0.5}", ConfigError, "Budget has no field 'mac'; did you mean macs"),
        ("depth: {remov: 2}", ConfigError, "Depth has no field 'remov'"),
        ("depth: {unit: mlp}", DepthError, "say how much goes"),
        ("- 0.2", ConfigError, "does not hold a configuration"),
        ("a: [", ConfigError, "cannot be read as a configuration"),
        ("criterion: Mine(x=1)", CriterionError, "no criterion 'Mine"),
    ],
)
def test_a_file_is_refused(tmp_path: Path, content: str, error: Any, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(error, match=message):
        PruneConfig.load(file)
    with pytest.raises(FxpruneError, match="cannot be read"):
        PruneConfig.load(tmp_path / "none.yaml")
