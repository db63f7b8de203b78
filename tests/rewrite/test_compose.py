"""Prunings one after the other are one plan for the model that was pruned first."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.errors import InputError, PlanError
from fxprune.hf.folder.tensors import tensors_of
from fxprune.plan import Plan
from fxprune.rewrite.compose import compose
from fxprune.rewrite.history import history_of
from tests import zoo
from tests.marks import but_slow
from tests.models import Perceptron

WIDTH: dict[str, Any] = {"pruning_ratio": 0.1, "criterion": fxprune.Magnitude()}
DEPTH: dict[str, Any] = {"criterion": fxprune.Magnitude()}


def outputs(model: nn.Module, example: zoo.Inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        found = torch.utils._pytree.tree_leaves(model(*example[0], **example[1]))
    return [x for x in found if isinstance(x, torch.Tensor)]


def assert_one_plan(
    model: nn.Module, traced: fxprune.Traced, last: fxprune.PruneResult, example: zoo.Inputs
) -> Plan:
    """The plan for the original makes the tensors and outputs of the last graph, bit for bit."""
    blank, plan = compose(last.traced, last.plan)
    assert all(tensor.is_meta for tensor in blank.tensors.values())
    plan.check_model(model)
    once = fxprune.rewrite(traced, plan)
    found, expected = tensors_of(once), tensors_of(last.graph_module)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    pairs = zip(outputs(once, example), outputs(last.graph_module, example), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert plan.parameters_after == sum(p.numel() for p in once.parameters())
    assert plan.parameters_before == sum(p.numel() for p in model.parameters())
    return plan


def pruned(model: nn.Module, example: zoo.Inputs, **options: Any) -> fxprune.PruneResult:
    return fxprune.prune(model, *example, **options)


KINDS = {
    "llama": ("mlp", "attention", "query", "head_dim", "channel"),
    "gpt2": ("mlp", "attention", "channel"),
    "t5": ("mlp", "attention", "channel"),  # tied: the canonical name is another after a trace
    "bloom": ("mlp", "attention"),  # the slopes of the heads that stay are a constant
    "phi3": ("mlp", "attention", "head_dim"),  # fused
    "resnet": ("mlp", "channel"),
    "perceptron": ("mlp",),
}


@pytest.mark.parametrize("name", but_slow(KINDS, "phi3", "gpt2", "t5"))
def test_three_times(name: str) -> None:
    backend = zoo.BY_NAME[name].backends[-1]
    model, traced = zoo.built(name, backend), zoo.traced(name, backend)
    example = zoo.BY_NAME[name].example()
    last = pruned(model, example, kinds=KINDS[name], **WIDTH)
    for _ in range(2):
        last = pruned(last.graph_module, example, kinds=KINDS[name], **WIDTH)
    plan = assert_one_plan(model, traced, last, zoo.BY_NAME[name].example(*zoo.OTHER))
    assert len(history_of(last.graph_module).steps) == 3  # type: ignore[union-attr]
    assert plan.criterion == last.plan.criterion
    assert plan.parameters_after < 0.8 * plan.parameters_before


@functools.cache
def llama() -> tuple[nn.Module, fxprune.Traced, zoo.Inputs]:
    return zoo.built("llama", "sdpa"), zoo.traced("llama", "sdpa"), zoo.BY_NAME["llama"].example()


_FREE: dict[str, Any] = {"remove": 1, "keep_first": 0, "keep_last": 0}
BRANCH = fxprune.Depth(unit="mlp", **_FREE)
BLOCK = fxprune.Depth(**_FREE)


@pytest.mark.parametrize(
    ("first", "depth"),
    [
        pytest.param("depth", BRANCH, id="depth-branch"),
        pytest.param("width", BLOCK, id="width-block"),
        pytest.param("depth", BLOCK, id="depth-block", marks=pytest.mark.slow),
        pytest.param("width", BRANCH, id="width-branch", marks=pytest.mark.slow),
    ],
)
def test_depth_and_width(first: str, depth: fxprune.Depth) -> None:
    model, traced, example = llama()
    options = [{"depth": depth, **DEPTH}, {"kinds": ("mlp", "attention", "channel"), **WIDTH}]
    steps = options if first == "depth" else options[::-1]
    one = pruned(model, example, **steps[0])
    two = pruned(one.graph_module, example, **steps[1])
    plan = assert_one_plan(model, traced, two, example)
    assert len(plan.removed) == 1
    assert plan.kept
    if first == "width":  # what was pruned in the part that goes is not a part of the plan
        gone = plan.removed[0].partition(":")[0]
        assert not any(name.startswith(f"{gone}.mlp") for name in plan.kept)
        assert any(name.startswith(f"{gone}.mlp") for name in one.plan.kept)


def test_a_branch_and_then_its_block() -> None:
    model, traced, example = llama()
    one = pruned(model, example, depth=BRANCH, **DEPTH)
    place = one.plan.removed[0].partition(":")[0]
    shorter = fxprune.trace(one.graph_module, *example)
    # In what is left the block is a branch.
    name = f"{place}:block"
    plan = Plan.of(fxprune.discover(fxprune.bypass(shorter, [name])), {})
    _, whole = compose(shorter, plan)
    assert whole.removed == (name,)
    once = fxprune.rewrite(traced, whole)
    for pair in zip(
        outputs(once, example), outputs(fxprune.rewrite(shorter, plan), example), strict=True
    ):
        assert torch.equal(*pair)


def test_biases_that_compensation_added() -> None:
    model, traced, example = llama()
    data = torch.arange(3, 99).view(8, 12)
    options: dict[str, Any] = {"calibration": data, "compensation": "bias", **WIDTH}
    one = pruned(model, example, **options)
    two = pruned(one.graph_module, example, **options)
    assert one.plan.biases
    _, plan = compose(two.traced, two.plan)
    assert set(plan.biases) == {*one.plan.biases, *two.plan.biases}
    once = fxprune.rewrite(traced, plan)
    shapes = {name: tensor.shape for name, tensor in tensors_of(once).items()}
    assert shapes == {name: tensor.shape for name, tensor in tensors_of(two.graph_module).items()}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch copies its own
def test_copied_and_filled_with_other_values() -> None:
    model, example = Perceptron().eval(), ((torch.randn(5, 20),), {})
    one = pruned(model, example, **WIDTH)
    again = copy.deepcopy(one.graph_module)
    again.load_state_dict({n: torch.rand_like(t) for n, t in one.graph_module.state_dict().items()})
    two = pruned(again, example, **WIDTH)
    blank, plan = compose(two.traced, two.plan)
    assert type(blank.module) is Perceptron
    assert all(set(plan.kept[name]) < set(kept) for name, kept in one.plan.kept.items())


def test_no_weight_of_the_original_is_held() -> None:
    model = Perceptron().eval()
    one = pruned(model, ((torch.randn(5, 20),), {}), kinds=("mlp",), **WIDTH).graph_module
    watched = [
        weakref.ref(p) for p in model.parameters() if all(p is not q for q in one.parameters())
    ]
    assert watched
    del model
    gc.collect()
    assert not [ref for ref in watched if ref() is not None]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch copies its own
def test_a_pickle_of_a_graph_forgets() -> None:
    one = pruned(Perceptron().eval(), ((torch.randn(5, 20),), {}), **WIDTH).graph_module
    again = pickle.loads(pickle.dumps(one))
    assert history_of(one) is not None
    assert history_of(again) is None
    with pytest.raises(InputError):
        again(torch.randn(5, 21))


def test_an_edited_graph_is_a_model_of_its_own() -> None:
    example = ((torch.randn(5, 20),), {})
    one = pruned(Perceptron().eval(), example, **WIDTH)
    node = next(
        n
        for n in one.graph_module.graph.nodes
        if "gelu" in str(n.target) or "relu" in str(n.target)
    )
    node.target = torch.ops.aten.tanh.default
    node.args, node.kwargs = node.args[:1], {}
    one.graph_module.recompile()
    two = pruned(one.graph_module, example, **WIDTH)
    traced, plan = compose(two.traced, two.plan)
    assert traced is two.traced
    assert plan is two.plan


def test_what_the_original_has_not_is_refused() -> None:
    example = ((torch.randn(5, 20),), {})
    one = pruned(Perceptron().eval(), example, **WIDTH).graph_module
    path, linear = next((n, m) for n, m in one.named_modules() if isinstance(m, nn.Linear))
    linear.register_parameter("scale", nn.Parameter(torch.ones(linear.out_features)))
    linear.register_forward_hook(lambda module, args, output: output * module.scale)
    two = pruned(one, example, **WIDTH)
    with pytest.raises(PlanError, match=rf"2 prunings.*Perceptron.*{path}.scale.* was added after"):
        compose(two.traced, two.plan)


def test_other_models_are_what_they_are() -> None:
    example = ((torch.randn(5, 20),), {})
    symbolic = fx.symbolic_trace(Perceptron().eval())
    one = pruned(symbolic, example, **WIDTH)
    assert compose(one.traced, one.plan) == (one.traced, one.plan)
    two = pruned(one.graph_module, example, **WIDTH)
    blank, plan = compose(two.traced, two.plan)
    plan.check_model(symbolic)
    assert isinstance(blank.module, fx.GraphModule)
