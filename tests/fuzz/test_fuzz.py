"""The fuzzer itself: a short run, and that it sees what it is to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

import fxprune
from tests.fuzz.check import Outcome, try_plan
from tests.fuzz.grammar import emit, random_program, subject_of
from tests.fuzz.program import Program, Step
from tests.fuzz.reduce import reduced
from tests.fuzz.reference import difference, expected, flat, shake
from tests.fuzz.run import run, summary, tasks
from tests.fuzz.subject import Captured, Spec, Subject, capture
from tests.fuzz.tasks import Failure, Task, families, run_task, task_of

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_short_run_finds_nothing() -> None:
    total = run(tasks(seed=0, family="generated"), plans=80)
    assert not total.failures, summary(total)
    right = sum(n for outcome, n in total.plans.items() if outcome.verdict == "right")
    assert right > 40, summary(total)


@pytest.mark.slow
def test_a_short_run_on_the_zoo_finds_nothing() -> None:
    work = [replace(task_of(0, 0, families(name)), plans=6) for name in ("resnet", "distilbert")]
    total = run(iter(work), plans=12)
    assert not total.failures, summary(total)


class Small(nn.Module):
    """A norm over channels, a residual branch and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(9, 12), nn.Linear(12, 14), nn.Linear(14, 12)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.head(self.norm(x + self.c(torch.relu(self.b(x)))))


@pytest.fixture(scope="module")
def small() -> Captured:
    torch.manual_seed(0)
    model = Small().eval()
    shake(model)
    inputs = [((torch.randn(n, 9),), {}) for n in (3, 5)]
    return capture(Subject("small", model, inputs))


def _spec(case: Captured) -> Spec:
    """A plan for the two groups there are, by their sizes."""
    by_size = {group.size: group.name for group in case.graph.groups}
    return Spec({by_size[14]: (0, 3, 7), by_size[12]: (1, 2, 5, 6, 8, 11)})


def test_a_right_plan_is_right(small: Captured) -> None:
    assert try_plan(small, _spec(small), small.inputs) == Outcome("right")


def test_the_reference_agrees_with_a_hand_made_model(small: Captured) -> None:
    """Built by hand at the smaller size, its weights cut by hand."""
    model = small.model
    units, channels = torch.tensor([0, 3, 7]), torch.tensor([1, 2, 5, 6, 8, 11])
    kept = {
        "a.weight": (channels, None), "a.bias": (channels,),
        "b.weight": (units, channels), "b.bias": (units,),
        "c.weight": (channels, units), "c.bias": (channels,),
        "norm.weight": (channels,), "norm.bias": (channels,), "head.weight": (None, channels),
    }  # fmt: skip
    (want,) = expected(model, *small.inputs[0], kept)
    by_hand = Small()
    by_hand.a, by_hand.b, by_hand.c = nn.Linear(9, 6), nn.Linear(6, 3), nn.Linear(3, 6)
    by_hand.norm, by_hand.head = nn.LayerNorm(6), nn.Linear(6, 4)
    state = dict(model.state_dict())
    for name, cuts in kept.items():
        for axis, cut in enumerate(cuts):
            if cut is not None:
                state[name] = state[name].index_select(axis, cut)
    by_hand.load_state_dict(state)
    assert difference([want], flat(by_hand(*small.inputs[0][0]))) < 1e-6


def _dead_unit(module: fx.GraphModule) -> None:
    module.b.weight[1].zero_()


def _swapped(module: fx.GraphModule) -> None:
    module.c.weight.copy_(module.c.weight.flip(1))


def _bias_off(module: fx.GraphModule) -> None:
    module.head.bias = nn.Parameter(module.head.bias + 0.01)  # the original shares the old one


def _norm_off(module: fx.GraphModule) -> None:
    module.norm.eps = 0.5


@pytest.mark.parametrize("damage", [_dead_unit, _swapped, _bias_off, _norm_off])
def test_damage_is_seen(
    small: Captured, damage: Callable[[fx.GraphModule], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fxprune.rewrite

    def damaged(*args: object, **kwargs: object) -> fx.GraphModule:
        module = whole(*args, **kwargs)  # type: ignore[arg-type]
        with torch.no_grad():
            damage(module)
        return module

    monkeypatch.setattr(fxprune, "rewrite", damaged)
    assert try_plan(small, _spec(small), small.inputs).verdict == "wrong"


def test_the_same_index_is_the_same_task() -> None:
    among = families("features")
    first, again = (run_task(task_of(3, 7, among)) for _ in range(2))
    assert first.plans == again.plans
    assert first.captures == again.captures


def test_a_step_that_goes_leaves_the_others_as_they_were() -> None:
    program = random_program(3, "sequence")
    key = program.steps[len(program.steps) // 2].key
    left = program.without({key})
    assert [s.key for s in left.steps] == [s.key for s in program.steps if s.key != key]
    assert [s.draws for s in left.steps] == [s.draws for s in program.steps if s.key != key]
    assert subject_of(left) is not None


def test_a_failure_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program with one step that is pruned wrongly, that step is what is left."""
    numbers = (3, 1, 4, 1, 5, 9, 2, 6)
    steps = [Step(i + 1, op, (i,), numbers) for i, op in enumerate(("linear", "act", "hidden"))]
    program = Program("features", tuple(steps), (3,), 0, numbers)
    whole = fxprune.rewrite

    def wrong(traced: fxprune.Traced, plan: fxprune.Plan) -> fx.GraphModule:
        module = whole(traced, plan)
        if hasattr(module, "m3") and plan.kept:
            with torch.no_grad():
                module.m3.weight.mul_(1.5)
        return module

    monkeypatch.setattr("tests.fuzz.reduce.program_of", lambda task: program)
    monkeypatch.setattr(fxprune, "rewrite", wrong)
    task = Task(0, 0, "features", low=False)
    failure = Failure(task, Outcome("wrong", "values", ""), Spec({"m3:units": (0, 1)}))
    text = reduced(failure)
    assert "self.m3 = " in text
    assert "self.m1 = " not in text
    assert "m3" in emit(program).source
