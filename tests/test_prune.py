"""The one verb, end to end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune import PPL, BlockInfluence, Depth, costs
from fxprune.errors import (
    CalibrationError,
    ConfigError,
    CriterionError,
    DepthError,
    SelectionError,
    ServeError,
)
from fxprune.importance import Criterion
from tests.llama import tiny_llama
from tests.marks import but_slow
from tests.zoo import BY_NAME, disturb

IDS = torch.arange(160).view(8, 20) % 90
OTHERS = torch.randint(90, (8, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A tiny Llama that knows IDS, so that its loss there has something to lose."""
    model = tiny_llama()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.requires_grad_(True)


def loss(model: nn.Module, ids: torch.Tensor = IDS) -> float:
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_prune() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.2, calibration=IDS)
    total = sum(p.numel() for p in model.parameters())
    assert result.plan.parameters_before == total
    assert result.plan.parameters_after <= 0.8 * total
    assert sum(p.numel() for p in result.graph_module.parameters()) == result.plan.parameters_after
    assert result.report is not None
    assert result.graph_module(input_ids=IDS[:3, :7]).logits.shape == (3, 7, 90)
    again = fxprune.select(result.graph, result.scores, 0.3)
    assert again.parameters_after <= 0.7 * total


def test_the_same_command_gives_the_same_plan() -> None:
    one, two = (
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion=fxprune.Random(3), verify=False)
        for _ in range(2)
    )
    assert one.plan == two.plan
    assert one.report is None


def test_consume_is_verified_against_the_original() -> None:
    model = tiny_llama()
    result = fxprune.prune(model, pruning_ratio=0.3, criterion=fxprune.Magnitude(), consume=True)
    assert result.report is not None
    assert model.model.layers[0].mlp.up_proj.weight.numel() == 0


def test_any_module_with_its_own_loss() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    x = torch.randn(16, 6)
    result = fxprune.prune(
        model,
        (x,),
        pruning_ratio=0.5,
        calibration={"input": x},
        loss_fn=lambda m, batch: m(batch["input"]).square().mean(),
    )
    assert result.plan.parameters_after <= 0.5 * result.plan.parameters_before


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_the_range_is_refused_at_once(ratio: float) -> None:
    with pytest.raises(SelectionError, match=r"outside \[0, 1\)"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=ratio)


def test_the_default_needs_data_and_says_what_does_without() -> None:
    with pytest.raises(
        CriterionError, match=r"give calibration=, or score .* criterion='magnitude'"
    ):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2)


def test_the_default_is_the_best_that_was_measured_for_language_models() -> None:
    result = fxprune.prune(tiny_llama(), calibration=IDS)
    assert result.plan.criterion == repr(fxprune.OBS())
    assert result.plan.parameters_after <= 0.8 * result.plan.parameters_before
    assert result.compensation is not None
    assert result.compensation.method == "least-squares"
    plain = fxprune.prune(
        tiny_llama(), calibration=IDS, criterion="obs", ranking="global", compensation="none"
    )
    assert plain.plan == result.plan
    assert plain.compensation is None


@pytest.mark.parametrize("consume", but_slow([False, True], False))
def test_where_much_goes_what_stays_is_trained_too(consume: bool) -> None:
    model = tiny_llama()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    result = fxprune.prune(
        model, calibration=IDS.repeat(16, 1), pruning_ratio=0.35, consume=consume
    )
    assert result.report is not None
    assert result.compensation is not None
    assert result.compensation.method == "blockwise"
    assert len(result.compensation.blocks) == 2
    if not consume:
        assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_any_other_model_is_scored_by_taylor() -> None:
    x = torch.randn(16, 6)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    result = fxprune.prune(model, x, calibration=[(x, torch.zeros(16).long())])
    assert result.plan.criterion == repr(fxprune.Taylor())
    assert result.compensation is None


def test_a_configuration_with_some_fields_changed() -> None:
    config = fxprune.PruneConfig(pruning_ratio="30%", criterion="magnitude", kinds="mlp")
    one = fxprune.prune(tiny_llama(), config=config, pruning_ratio="10%")
    two = fxprune.prune(
        tiny_llama(), pruning_ratio=0.1, criterion=fxprune.Magnitude(), kinds=("mlp",)
    )
    assert one.plan == two.plan
    assert one.config == fxprune.PruneConfig.of(config, pruning_ratio=0.1)
    for wrong in ({"ratio": 0.2}, {"config": {"pruning_ratio": 0.2}}):
        with pytest.raises(ConfigError, match=r"no field 'ratio'|takes a fxprune.PruneConfig"):
            fxprune.prune(tiny_llama(), **wrong)


def test_ratio_zero_changes_nothing() -> None:
    result = fxprune.prune(tiny_llama(), pruning_ratio=0, criterion=fxprune.Magnitude())
    assert not result.plan.kept


# Budgets


def test_macs_and_kv_cache() -> None:
    budget = fxprune.Budget(macs=0.7, kv_cache=0.67)
    result = fxprune.prune(tiny_llama(), budget=budget, criterion=fxprune.Magnitude())
    counts = result.plan.kept_counts(result.graph)
    # One of three heads stays in one layer, or two in both: 48 of 72 numbers.
    assert costs.kv_cache(result.graph, counts) == 48
    whole = costs.macs(result.graph)
    assert 0.69 * whole < costs.macs(result.graph, counts) <= 0.7 * whole
    small = fxprune.discover(fxprune.trace(result.graph_module, kwargs={"input_ids": IDS}))
    assert costs.macs(small) == costs.macs(result.graph, counts)


def test_units_are_rounded_as_in_llm_pruner() -> None:
    result = fxprune.prune(
        tiny_llama(), budget=fxprune.Budget(units=0.35), criterion=fxprune.Magnitude()
    )
    sizes = {name.rpartition(":")[2]: len(kept) for name, kept in result.plan.kept.items()}
    # 40 - int(40 * 0.65) = 14 neurons; of 18 channels 7 (of 3 heads, 6 each, 1) go.
    assert sizes == {"units": 26, "heads": 2}


def test_one_goal() -> None:
    with pytest.raises(SelectionError, match="are two limits: give one"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, budget=fxprune.Budget(params=0.5))


def test_a_ratio_and_a_budget_are_both_met() -> None:
    options: dict[str, Any] = {"criterion": "magnitude", "verify": False}
    budget = fxprune.Budget(kv_cache="67%")
    found = fxprune.prune(tiny_llama(), pruning_ratio=0.2, budget=budget, **options)
    both = fxprune.prune(tiny_llama(), budget=fxprune.Budget(params=0.8, kv_cache=0.67), **options)
    assert found.plan.kept == both.plan.kept


# Rankings


def test_the_ranking_that_belongs_to_a_criterion() -> None:
    model, criterion = tiny_llama(), fxprune.FLAP()
    options: dict[str, Any] = {"criterion": criterion, "calibration": OTHERS, "verify": False}

    def plans(**selection: Any) -> tuple[fxprune.Plan, fxprune.Plan]:
        """Of prune, and of select with the options that FLAP wants."""
        result = fxprune.prune(model, pruning_ratio=0.2, **options, **selection)
        wanted = {"normalise": "none", "cost_aware": False, **selection}
        return result.plan, fxprune.select(result.graph, result.scores, 0.2, **wanted)

    ours, theirs = plans(ranking="global")
    assert ours == theirs
    plain = fxprune.prune(model, pruning_ratio=0.2, **options, ranking="global", normalise="kind")
    assert plain.plan != ours  # what the caller says goes before
    ours, theirs = plans(ranking="global", normalise="kind", cost_aware=True)
    assert ours == theirs
    result = fxprune.prune(model, pruning_ratio=0.2, **options)
    assert result.plan == fxprune.select(result.graph, result.scores, 0.2)


def test_something_else_than_a_criterion() -> None:
    for wrong in (fxprune.Taylor, [fxprune.Magnitude()]):
        with pytest.raises(CriterionError, match="not a criterion"):
            fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion=wrong, ranking="global")


# Steps


def test_steps_read_a_generator_more_than_once() -> None:
    halves = (IDS[:4], IDS[4:])
    found = [
        fxprune.prune(
            tiny_llama(), pruning_ratio=0.3, steps=3, calibration=data, verify=False,
            compensation="least-squares",
        )
        for data in (list(halves), (each for each in halves))
    ]  # fmt: skip
    assert found[0].plan == found[1].plan
    pairs = zip(found[0].graph_module.parameters(), found[1].graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_steps_are_another_plan_than_one() -> None:
    one, three = (
        fxprune.prune(tiny_llama(), pruning_ratio=0.4, steps=n, calibration=IDS) for n in (1, 3)
    )
    assert one.plan.kept != three.plan.kept
    assert three.plan.parameters_after <= 0.6 * three.plan.parameters_before
    assert all(torch.equal(one.scores[name], three.scores[name]) for name in one.scores)
    assert three.report is not None


# Compensation


@pytest.mark.parametrize("method", ["bias", "least-squares"])
def test_compensation_lowers_the_loss(trained: nn.Module, method: Any) -> None:
    before = copy.deepcopy(trained.state_dict())
    options: dict[str, Any] = {"criterion": fxprune.Magnitude(), "calibration": IDS}
    plain = fxprune.prune(trained, pruning_ratio=0.25, **options, compensation=None)
    mended = fxprune.prune(trained, pruning_ratio=0.25, **options, compensation=method)
    if method == "bias":  # what it gains, more units make up for
        assert mended.plan.parameters_after <= 0.75 * mended.plan.parameters_before
    else:
        assert mended.plan == plain.plan
    assert bool(mended.plan.biases) == (method == "bias")
    assert mended.report is not None
    assert plain.compensation is None
    assert mended.compensation is not None
    assert mended.compensation.method == method
    assert loss(trained) < loss(mended.graph_module) < loss(plain.graph_module)
    assert all(torch.equal(before[n], p) for n, p in trained.state_dict().items())
    parameters = sum(p.numel() for p in mended.graph_module.parameters())
    assert parameters == mended.plan.parameters_after


def test_consume_keeps_what_compensation_needs(trained: nn.Module) -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.25, "criterion": fxprune.Magnitude()}
    options |= {"calibration": IDS, "compensation": "least-squares"}
    kept = fxprune.prune(copy.deepcopy(trained), **options)
    consumed = fxprune.prune(copy.deepcopy(trained), **options, consume=True)
    pairs = zip(kept.graph_module.parameters(), consumed.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_data_of_its_own_for_compensation() -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.25, "verify": False}
    options |= {"compensation": "least-squares"}
    with_both = fxprune.prune(
        tiny_llama(), criterion=fxprune.Magnitude(), calibration=IDS, compensation_data=OTHERS,
        **options,
    )  # fmt: skip
    alone = fxprune.prune(
        tiny_llama(), criterion=fxprune.Magnitude(), compensation_data=OTHERS, **options
    )
    pairs = zip(with_both.graph_module.parameters(), alone.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensation": "bias"}, "compensation='bias' needs calibration data"),
        (
            {"compensation": "bias", "compensation_scope": "all", "calibration": IDS},
            "method='bias' is for units that go",
        ),
        (
            {
                "compensation": "least-squares",
                "compensation_scope": "some",
                "calibration": IDS,
            },
            "scope='some': choose from pruned, all",
        ),
    ],
)
def test_compensation_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, criterion=fxprune.Magnitude(), **options)


# Scores of an earlier run


def test_scores_are_planned_from_again(tmp_path: Path) -> None:
    first = fxprune.prune(tiny_llama(), pruning_ratio=0.1, calibration=IDS)
    first.scores.save(tmp_path / "scores.safetensors")
    loaded = fxprune.Scores.load(tmp_path / "scores.safetensors")
    again = fxprune.prune(tiny_llama(), pruning_ratio=0.3, scores=loaded)
    fresh = fxprune.prune(tiny_llama(), pruning_ratio=0.3, calibration=IDS)
    assert again.plan == fresh.plan
    assert again.plan.criterion == repr(fxprune.OBS())
    assert again.scores is loaded
    assert again.report is not None


def test_scores_bring_their_ranking() -> None:
    options: dict[str, Any] = {"pruning_ratio": 0.2, "ranking": "global", "verify": False}
    first = fxprune.prune(tiny_llama(), criterion=fxprune.FLAP(), calibration=OTHERS, **options)
    assert fxprune.prune(tiny_llama(), scores=first.scores, **options).plan == first.plan
    assert first.scores.ranking == dict(fxprune.FLAP.ranking)
    # Scores that say nothing about it rank as select does.
    plain = fxprune.Scores(first.scores, "Own()")
    expected = fxprune.select(first.graph, plain, 0.2, ranking="global")
    assert fxprune.prune(tiny_llama(), scores=plain, **options).plan == expected != first.plan


def test_scores_stand_alone() -> None:
    scores = fxprune.Scores({})
    criterion: Criterion = fxprune.Magnitude()
    with pytest.raises(CriterionError, match="either a criterion or scores="):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=scores, criterion=criterion)
    with pytest.raises(CriterionError, match=r"takes fxprune.Scores, not dict"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=dict(scores))
    with pytest.raises(SelectionError, match="3 steps need new scores"):
        fxprune.prune(nn.Linear(2, 2), pruning_ratio=0.2, scores=scores, steps=3)
    with pytest.raises(SelectionError, match="no scores for group"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, scores=scores)


# Depth

FREE: dict[str, Any] = {"keep_first": 0, "keep_last": 0}
LAYER = 3 * 36 * 40 + 2 * 36 * 36 + 2 * 36 * 18 + 2 * 36  # parameters of one of tiny_llama


def deep() -> Any:
    """Four layers, in which every block does something."""
    model = tiny_llama(num_hidden_layers=4)
    disturb(model)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_depth_alone() -> None:
    model = deep()
    options: dict[str, Any] = {"depth": Depth(remove=2, **FREE), "calibration": IDS}
    result = fxprune.prune(model, **options, compensation=None)
    choice = fxprune.choose_depth(fxprune.trace(model), Depth(remove=2, **FREE), PPL(), IDS)
    assert result.removal == choice
    assert result.scores == choice.scores
    assert result.plan.removed == tuple(sorted(choice.removed))
    assert result.plan.criterion == "PPL(), one-shot"
    assert not result.plan.kept
    assert result.plan.parameters_before == parameters(model)
    assert result.plan.parameters_after == parameters(model) - 2 * LAYER
    assert parameters(result.graph_module) == result.plan.parameters_after
    assert result.report is not None
    assert result.report.max_abs_error < 1e-5
    short = copy.deepcopy(model)
    for name in reversed(result.plan.removed):
        del short.model.layers[int(name.split(".")[2][0])]
    short.config.use_cache = False
    torch.testing.assert_close(result.graph_module(input_ids=IDS).logits, short(IDS).logits)


def test_depth_by_a_criterion_under_either_name() -> None:
    options: dict[str, Any] = {"depth": Depth(remove=1, **FREE), "calibration": IDS}
    one = fxprune.prune(deep(), criterion=BlockInfluence(), **options)
    two = fxprune.prune(deep(), depth_criterion=BlockInfluence(), **options)
    assert one.plan == two.plan
    assert one.plan.criterion == "BlockInfluence(), one-shot"
    fixed = fxprune.prune(deep(), depth=Depth(schedule="alternate"))
    assert fixed.plan.removed == ("model.layers.1:block", "model.layers.3:block")
    assert fixed.plan.criterion == "alternate"


def test_depth_and_width_in_one_plan(tmp_path: Path) -> None:
    model = deep()
    result = fxprune.prune(
        model,
        depth=Depth(remove=1, **FREE),
        pruning_ratio=0.4,
        criterion=fxprune.Magnitude(),
        calibration=IDS,
        compensation=None,
    )
    plan, before = result.plan, parameters(model)
    assert len(plan.removed) == 1
    assert plan.kept
    assert not any(name.startswith(plan.removed[0].partition(":")[0]) for name in plan.kept)
    assert plan.parameters_before == before
    unit = 3 * 36 * 6 * 2  # of the largest, a key/value head with its queries
    assert 0.6 * before - unit < plan.parameters_after <= 0.6 * before
    assert parameters(result.graph_module) == plan.parameters_after
    assert result.traced.original is None
    assert result.graph.traced.removed == plan.removed
    assert fxprune.verify(result.traced, result.graph_module, plan).relative_error < 1e-5
    plan.save(tmp_path / "plan.json")
    again = fxprune.Plan.load(tmp_path / "plan.json")
    assert again == plan
    replayed = fxprune.rewrite(fxprune.trace(model), again)
    expected = result.graph_module(input_ids=IDS).logits
    assert torch.equal(replayed(input_ids=IDS).logits, expected)
    fxprune.save(result.graph_module, tmp_path / "m", plan=plan, traced=result.traced)
    loaded = fxprune.load(tmp_path / "m")
    assert torch.equal(loaded(input_ids=IDS).logits, expected)
    assert parameters(loaded) == plan.parameters_after


@pytest.mark.parametrize(
    ("family", "path", "criterion"),
    [
        ("llama", "model.layers", fxprune.Taylor()),
        ("llama", "model.layers", fxprune.OBS()),
        ("bert", "bert.encoder.layer", fxprune.Taylor()),
        ("bert", "bert.encoder.layer", fxprune.FLAP()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_width_after_depth_is_that_of_a_model_built_without(
    family: str, path: str, criterion: Criterion
) -> None:
    model: Any = BY_NAME[family].build("sdpa")
    short = copy.deepcopy(model)
    del short.get_submodule(path)[0]
    ids = torch.randint(3, 101, (8, 12), generator=torch.Generator().manual_seed(1))
    data = {"input_ids": ids}
    if isinstance(criterion, fxprune.Taylor):
        data["labels"] = ids.roll(3, 1).masked_fill(ids % 5 == 0, -100)
    options: dict[str, Any] = {
        "budget": fxprune.Budget(params=int(0.8 * parameters(short))),
        "criterion": criterion,
        "calibration": data,
        "batch_size": 3,
        "ranking": "global",
    }
    both = fxprune.prune(
        model, depth=Depth(remove=1, keep_first=0, keep_last=1), depth_criterion=fxprune.Random(),
        **options,
    )  # fmt: skip
    assert both.plan.removed == (f"{path}.0:block",)
    alone = fxprune.prune(short, **options)
    renamed = {name: name.replace(f"{path}.1", f"{path}.0") for name in both.scores}
    assert {renamed[name]: kept for name, kept in both.plan.kept.items()} == alone.plan.kept
    assert both.plan.parameters_after == alone.plan.parameters_after
    for name, score in both.scores.items():
        torch.testing.assert_close(score, alone.scores[renamed[name]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_consume_with_depth(ratio: float | None) -> None:
    options: dict[str, Any] = {
        "depth": Depth(remove=1, **FREE), "calibration": IDS, "pruning_ratio": ratio,
        "depth_criterion": PPL(), "compensation": None,
    }  # fmt: skip
    options |= {} if ratio is None else {"criterion": fxprune.Magnitude()}
    model = deep()
    kept = fxprune.prune(deep(), **options)
    consumed = fxprune.prune(model, **options, consume=True)
    assert consumed.report is not None
    assert consumed.plan == kept.plan
    pairs = zip(kept.graph_module.parameters(), consumed.graph_module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    (gone,) = consumed.plan.removed
    assert all(p.numel() == 0 for p in model.get_submodule(gone.partition(":")[0]).parameters())
    if ratio is None:
        assert parameters(model) == parameters(consumed.graph_module)  # shared, not copied


def test_compensation_with_depth(trained: nn.Module) -> None:
    """What the block did is made up for, and what the pruned units did."""
    before = copy.deepcopy(trained.state_dict())
    options: dict[str, Any] = {
        "depth": Depth(remove=1, **FREE), "pruning_ratio": 0.6, "criterion": fxprune.Magnitude(),
        "calibration": IDS,
    }  # fmt: skip
    plain = fxprune.prune(trained, **options, compensation=None)
    mended = fxprune.prune(
        trained, **options, compensation="least-squares", compensation_scope="pruned"
    )
    assert mended.plan == plain.plan
    assert len(plain.plan.removed) == 1
    assert mended.compensation is not None
    assert len(mended.compensation.consumers) == 2  # of the one layer that is left

    def distance(module: nn.Module) -> float:
        with torch.no_grad():
            apart = module(input_ids=IDS).logits - trained(input_ids=IDS).logits
        return float(apart.norm())

    assert distance(mended.graph_module) < 0.9 * distance(plain.graph_module)
    assert all(torch.equal(before[n], p) for n, p in trained.state_dict().items())
    alone = fxprune.prune(
        trained, depth=Depth(remove=1, **FREE), calibration=IDS, compensation="bias"
    )
    assert alone.compensation is not None
    assert not alone.compensation.consumers


def test_depth_alone_is_mended_by_default() -> None:
    """The proof is of the model before; the transformers model has the mended weights."""
    model, options = deep(), {"depth": Depth(remove=2, **FREE), "calibration": IDS}
    plain = fxprune.prune(model, **options, compensation=None)
    mended = fxprune.prune(model, **options)
    assert mended.plan == plain.plan
    assert mended.report is not None
    assert plain.compensation is None
    assert mended.compensation is not None
    assert mended.compensation.method == "least-squares"
    with torch.no_grad():
        dense, before, after, stock = (
            each(input_ids=IDS).logits
            for each in (model, plain.graph_module, mended.graph_module, mended.model)
        )
    assert (after - dense).norm() < 0.5 * (before - dense).norm()
    torch.testing.assert_close(stock, after, atol=1e-4, rtol=1e-3)
    assert fxprune.prune(deep(), depth=Depth(schedule="alternate")).compensation is None  # no data


def test_steps_after_depth() -> None:
    options: dict[str, Any] = {"depth": Depth(remove=1, **FREE), "pruning_ratio": 0.45}
    one, three = (
        fxprune.prune(deep(), **options, calibration=iter([IDS]), steps=n) for n in (1, 3)
    )
    assert one.plan.removed == three.plan.removed
    assert one.plan.kept != three.plan.kept
    assert three.plan.parameters_after <= 0.55 * three.plan.parameters_before


def test_scores_of_an_earlier_run_after_depth() -> None:
    options: dict[str, Any] = {"depth": Depth(remove=1, **FREE), "calibration": IDS}
    first = fxprune.prune(deep(), pruning_ratio=0.3, **options)
    again = fxprune.prune(deep(), pruning_ratio=0.3, scores=first.scores, **options)
    assert again.plan == first.plan


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"depth_criterion": PPL(), "pruning_ratio": 0.2},
            CriterionError,
            "say how many go",
        ),
        (
            {"criterion": PPL(), "pruning_ratio": 0.2},
            CriterionError,
            r"PPL\(\) scores blocks and branches, .* as depth_criterion=, with depth=",
        ),
        (
            {"criterion": PPL(), "pruning_ratio": 0.2, "depth": Depth(remove=1)},
            CriterionError,
            r"PPL\(\) scores blocks and branches",
        ),
        (
            {"criterion": PPL(), "depth_criterion": PPL(), "depth": Depth(remove=1)},
            CriterionError,
            "only blocks go, by one criterion",
        ),
        (
            {"scores": fxprune.Scores({}), "depth": Depth(remove=1)},
            CriterionError,
            "depth alone takes a criterion",
        ),
        (
            {"depth": Depth(remove=1), "keep_first": 1},
            SelectionError,
            "keep_first= is for units of groups",
        ),
        ({"depth": Depth(remove=1), "steps": 2}, SelectionError, "steps= is for units of groups"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fxprune.prune(nn.Linear(2, 2), **options)


def test_what_depth_refuses() -> None:
    with pytest.raises(DepthError, match="0 may, 4 more are protected"):
        fxprune.prune(deep(), depth=Depth(remove=1), calibration=IDS)
    with pytest.raises(CriterionError, match=r"PPL\(\) needs calibration data"):
        fxprune.prune(deep(), depth=Depth(remove=1, **FREE))
    with pytest.raises(CriterionError, match=r"OBS\(.* scores units of groups, and no blocks"):
        fxprune.prune(
            deep(), depth=Depth(remove=1, **FREE), criterion=fxprune.OBS(), calibration=IDS
        )


# For an engine


def test_a_model_for_an_engine() -> None:
    result = fxprune.prune(
        tiny_llama(), pruning_ratio=0.2, target="transformers", criterion="magnitude"
    )
    plan = result.plan
    assert fxprune.check_plan(result.graph, plan) == []
    assert type(result.model).__name__ == "LlamaForCausalLM"
    assert result.surcharge is not None
    free = fxprune.prune(tiny_llama(), pruning_ratio=0.2, criterion="magnitude", verify=False)
    assert result.surcharge.free == free.plan
    assert free.surcharge is None
    assert result.surcharge.lost > 0


def test_what_an_engine_cannot_run_is_refused_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scored(*args: Any, **options: Any) -> None:
        pytest.fail("something was scored")

    monkeypatch.setattr("fxprune.stream.iterate.estimate", scored)
    monkeypatch.setattr("fxprune.depth.search.score_units", scored)
    options: dict[str, Any] = {"target": "transformers", "criterion": "magnitude", "verify": False}
    depth = Depth(remove=1, unit="mlp", keep_first=0, keep_last=0)
    with pytest.raises(ServeError, match="transformers cannot leave out mlp"):
        fxprune.prune(tiny_llama(), depth=depth, **options)
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ServeError, match="Sequential is not a class of transformers"):
        fxprune.prune(plain, (torch.randn(2, 3),), pruning_ratio=0.2, **options)
    with pytest.raises(SelectionError, match="has one number of units for all layers"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.2, ranking="local", **options)
    with pytest.raises(SelectionError, match="nothing is left to prune for transformers"):
        fxprune.prune(tiny_llama(), pruning_ratio=0.1, kinds="head_dim", **options)
    with pytest.raises(SelectionError, match="transformers has no place for new biases"):
        fxprune.prune(
            tiny_llama(), pruning_ratio=0.2, compensation="bias", calibration=IDS, **options
        )


def test_blocks_for_an_engine() -> None:
    depth = Depth(remove=1, keep_first=0, keep_last=0)
    result = fxprune.prune(
        tiny_llama(), depth=depth, criterion="magnitude", target="transformers", verify=False
    )
    assert (len(result.plan.removed), result.surcharge) == (1, None)
    both = fxprune.prune(
        tiny_llama(num_hidden_layers=3), depth=depth, pruning_ratio=0.3, criterion="magnitude",
        depth_criterion="magnitude", target="transformers", steps=2, verify=False,
    )  # fmt: skip
    assert both.surcharge is not None
    assert len({len(kept) for name, kept in both.plan.kept.items() if "mlp" in name}) == 1
