"""A graph takes the inputs for which it is the model, and refuses all others by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import FxpruneWarning, InputError
from fxprune.trace.guards import Guards, check
from fxprune.trace.inputs import at_other_size
from tests.llama import tiny_llama
from tests.trace.small import Small


def quietly(model: nn.Module, *args: Any, **kwargs: Any) -> fxprune.Traced:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)
        return fxprune.trace(model.eval(), args, kwargs)


def doubled(when: Callable[[torch.Size], Any]) -> Small:
    """Twice the result where a question about the input's shape is answered with yes."""
    return Small(lambda m, x: m.b(m.a(x).relu()) * (2 if when(x.shape) else 1))


QUESTIONS: dict[str, tuple[Callable[[torch.Size], Any], tuple[int, int], list[tuple[int, int]]]] = {
    "longer": (lambda s: s[1] > 16, (2, 11), [(2, 16), (2, 17), (3, 40), (1, 1)]),
    "shorter": (lambda s: s[1] < 8, (2, 11), [(2, 8), (2, 7), (2, 1)]),
    "batch": (lambda s: s[0] > 3, (2, 11), [(3, 11), (4, 11), (1, 5)]),
    "one row": (lambda s: s[0] == 1, (2, 11), [(1, 11), (3, 4)]),
    "one token": (lambda s: s[1] == 1, (2, 11), [(2, 1), (2, 2)]),
    "multiple": (lambda s: s[1] % 4 == 0, (2, 11), [(2, 12), (2, 13), (2, 16)]),
    "relation": (lambda s: s[0] * 3 < s[1], (2, 11), [(4, 11), (3, 11), (1, 3), (1, 4)]),
    "either": (lambda s: s[0] > 3 or s[1] > 20, (2, 11), [(4, 11), (2, 21), (3, 20)]),
    "largest": (lambda s: max(s[0], s[1]) > 12, (2, 11), [(13, 2), (2, 13), (12, 12)]),
    "half": (lambda s: s[1] // 2 > 7, (2, 11), [(2, 15), (2, 16)]),
    "python loop": (lambda s: len(range(s[1])) > 3, (2, 11), [(2, 12), (2, 3)]),
    "elements": (lambda s: s.numel() > 200, (2, 11), [(3, 11), (5, 9), (1, 30)]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_right_or_refused(name: str) -> None:
    when, traced_at, others = QUESTIONS[name]
    model = doubled(when)
    traced = quietly(model, torch.randn(*traced_at, 8))
    refused = 0
    for shape in [traced_at, *others]:
        x = torch.randn(*shape, 8)
        with torch.no_grad():
            try:
                found = traced.graph_module(x)
            except InputError:
                refused += 1
                assert shape != traced_at
            else:
                torch.testing.assert_close(found, model(x))
    answers = {bool(when(torch.Size((*shape, 8)))) for shape in [traced_at, *others]}
    assert refused > 0 or len(answers) == 1


def test_the_message_says_what_it_takes_and_what_it_got() -> None:
    traced = quietly(doubled(lambda s: s[1] > 16), torch.randn(2, 11, 8))
    with pytest.raises(InputError, match=r"axis 1 of args\[0\] has size 40.*1 to 16: trace with"):
        traced.graph_module(torch.randn(2, 40, 8))


def test_a_lost_range_is_said_with_its_line() -> None:
    with pytest.warns(FxpruneWarning, match=r"args\[0\]\.shape\[1\] is 1 to 16 \(test_guards\.py:"):
        fxprune.trace(doubled(lambda s: s[1] > 16).eval(), (torch.randn(2, 11, 8),))
    with pytest.warns(FxpruneWarning, match=r"shape\[1\] % 4\) != 0.*\(test_guards\.py:\d+\)"):
        fxprune.trace(doubled(lambda s: s[1] % 4 == 0).eval(), (torch.randn(2, 11, 8),))


def test_what_the_model_itself_refuses_is_no_loss() -> None:
    def run(m: Small, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 16:
            raise ValueError("too long")
        return m.b(m.a(x))

    traced = fxprune.trace(Small(run).eval(), (torch.randn(2, 11, 8),))
    with pytest.raises(InputError, match="1 to 16"):
        traced.graph_module(torch.randn(2, 17, 8))


def test_rank_dtype_and_constants() -> None:
    def run(m: Small, x: torch.Tensor, times: int, mask: Any = None, *, mode: str = "a") -> Any:
        y = m.b(m.a(x)) * times
        return y if mask is None else y * mask

    traced = quietly(Small(run), torch.randn(2, 11, 8), 3, None, mode="a")
    graph, x = traced.graph_module, torch.randn(4, 5, 8)
    graph(x, 3, None, mode="a")
    for args, mode, message in (
        ((x[0], 3, None), "a", "has 2 axes"),
        ((x.long(), 3, None), "a", r"has dtype torch\.int64"),
        ((x, 4, None), "a", "was 3 when"),
        ((x, 3.0, None), "a", "was 3 when"),
        ((x, True, None), "a", "was 3 when"),
        ((x, 3, torch.ones(4, 5, 4)), "a", "was None when"),
        ((x, 3, None), "b", "was 'a' when"),
        ((None, 3, None), "a", "was a tensor when"),
        ((torch.randn(4, 5, 9), 3, None), "a", "axis 2 of args"),
    ):
        with pytest.raises(InputError, match=message):
            graph(*args, mode=mode)


def test_the_structure_of_the_inputs() -> None:
    def run(m: Small, xs: Any, more: Any) -> torch.Tensor:
        return m.b(sum(m.a(x) for x in xs) + sum(more.values()))

    x, y = torch.randn(2, 8), torch.randn(2, 16)
    traced = fxprune.trace(Small(run).eval(), ([x, x],), {"more": {"u": y, "v": y}})
    small = fxprune.rewrite(traced, fxprune.Plan.of(fxprune.discover(traced), {}))
    compiled = torch.compile(small, fullgraph=True, backend="eager")
    for graph in (traced.graph_module, small, compiled):
        torch.testing.assert_close(
            graph((x, x), more={"v": y, "u": y}), traced.module([x, x], more={"u": y, "v": y})
        )
    for graph in (traced.graph_module, small):
        for xs, more, message in (
            ([x, x, x], {"u": y, "v": y}, r"args\[0\] holds 3 values.*for 2 values"),
            ([x], {"u": y, "v": y}, r"args\[0\] holds 1 values"),
            ([x, x], {"u": y, "v": y, "w": y}, "more holds the keys u, v, w"),
            ([x, x], {"u": y, "w": y}, "more holds the keys u, w.*for the keys u, v"),
            ([x, x], y, "more holds Tensor"),
        ):
            with pytest.raises(InputError, match=message):
                graph(xs, more=more)


def test_a_cast_graph_takes_its_new_dtype() -> None:
    traced = quietly(doubled(lambda s: False), torch.randn(2, 11, 8))
    assert traced.graph_module.double()(torch.randn(2, 5, 8).double()).dtype == torch.float64


def test_sizes_that_belong_together() -> None:
    traced = quietly(
        Small(lambda m, x, y: m.b(m.a(x)) + y), torch.randn(2, 11, 8), torch.randn(2, 11, 4)
    )
    traced.graph_module(torch.randn(3, 5, 8), torch.randn(3, 5, 4))
    with pytest.raises(InputError, match="beside the other inputs"):
        traced.graph_module(torch.randn(3, 5, 8), torch.randn(3, 6, 4))


def test_the_rewritten_graph_checks_and_so_do_its_copies(tmp_path: Path) -> None:
    model = doubled(lambda s: s[1] > 16)
    traced = quietly(model, torch.randn(2, 11, 8))
    plan = fxprune.Plan.of(fxprune.discover(traced), {})
    small = fxprune.rewrite(traced, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FxpruneWarning)
        archive = fxprune.export(small, tmp_path / "small.pt2", (torch.randn(2, 11, 8),))
        fxprune.save(small, tmp_path / "folder", plan=plan, traced=traced)
        loaded = fxprune.load(tmp_path / "folder", model=model)
        again = quietly(small, torch.randn(2, 11, 8)).graph_module
    graphs: list[Callable[..., Any]] = [
        small, loaded, again, fx.Interpreter(small).run, torch.export.load(archive).module(),
        torch.compile(small, fullgraph=True, backend="eager"),
    ]  # fmt: skip
    for graph in graphs:
        x = torch.randn(1, 16, 8)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), model(x))
            with pytest.raises(Exception, match=r"16|[Gg]uard"):
                graph(torch.randn(2, 17, 8))
    for graph in (small, loaded, again, fx.Interpreter(small).run):
        with pytest.raises(InputError):
            graph(torch.randn(2, 17, 8))


def test_compiled_for_all_sizes_without_a_break() -> None:
    traced = quietly(doubled(lambda s: s[1] > 16), torch.randn(2, 11, 8))
    compiled = torch.compile(traced.graph_module, fullgraph=True, backend="eager", dynamic=True)
    for shape in ((2, 11), (3, 7), (1, 16)):
        x = torch.randn(*shape, 8)
        torch.testing.assert_close(compiled(x), traced.graph_module(x))


class Segment(nn.Module):
    """Convolutions, and logits of the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 20, 3, 2, 1)
        self.c = nn.Conv2d(20, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(F.relu(self.b(F.relu(self.a(x)))))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Down by two twice, up again by a factor, joined with what was there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up, self.c = nn.Upsample(scale_factor=2), nn.Conv2d(20, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        return self.c(torch.cat((a, self.up(self.b(a))), 1))


@pytest.mark.parametrize("model", [Segment(), Pyramid()], ids=["segment", "pyramid"])
def test_pictures_of_other_sizes(model: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    result = fxprune.prune(
        model.eval(), (x,), pruning_ratio=0.2, kinds=("channel",), criterion=fxprune.Magnitude()
    )
    whole = quietly(model, x).graph_module
    refused = 0
    for shape in ((2, 3, 64, 48), (1, 3, 36, 44), (3, 3, 31, 33)):
        other = torch.randn(*shape)
        with torch.no_grad():
            try:
                expected = model(other)
            except RuntimeError:  # the model's own shapes do not fit there
                with pytest.raises(InputError):
                    whole(other)
                refused += 1
                continue
            torch.testing.assert_close(whole(other), expected)
            assert result.graph_module(other).shape == expected.shape
    assert refused == (1 if isinstance(model, Pyramid) else 0)


def test_channels_are_no_sequence() -> None:
    """Nothing is said of an axis that a weight fixes."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1))
    traced = fxprune.trace(model.eval(), (torch.randn(2, 4, 30),))
    assert traced.graph_module(torch.randn(1, 4, 17)).shape == (1, 2, 15)


def test_only_the_axis_that_cannot_is_given_up() -> None:
    def run(m: Small, x: torch.Tensor) -> torch.Tensor:
        return m.b(torch.stack([m.a(x)[:, i] for i in range(x.shape[1])], 1))

    with pytest.warns(FxpruneWarning, match=r"axis 1 \(sequence\).*fixed at 5 \(test_guards\.py:"):
        traced = fxprune.trace(Small(run).eval(), (torch.randn(2, 5, 8),))
    assert traced.graph_module(torch.randn(7, 5, 8)).shape == (7, 5, 4)
    with pytest.raises(InputError, match="axis 1"):
        traced.graph_module(torch.randn(7, 6, 8))


@pytest.mark.parametrize("one_row", [lambda x: x.shape[0] == 1, lambda x: x.squeeze().dim() == 2])
def test_a_model_that_hangs_on_one_row_is_captured_with_it(one_row: Callable[..., Any]) -> None:
    model = Small(lambda m, x: m.b(m.a(x)) * (2 if one_row(x) else 1))
    traced = quietly(model, torch.randn(1, 11, 8))
    for length in (11, 5):
        x = torch.randn(1, length, 8)
        with torch.no_grad():
            torch.testing.assert_close(traced.graph_module(x), model(x))
    with pytest.raises(InputError):
        traced.graph_module(torch.randn(2, 11, 8))


def test_a_squeeze_forbids_the_size_that_it_would_take_away() -> None:
    for run in (
        lambda m, x: m.b(m.a(x)).squeeze(),
        lambda m, x: m.b(m.a(x).squeeze(0).relu()),
        lambda m, x: m.b(m.a(x)[:, :, None].squeeze((0, 2))),
    ):
        traced = fxprune.trace(Small(run).eval(), (torch.randn(2, 11, 8),))
        traced.graph_module(torch.randn(3, 7, 8))
        with pytest.raises(InputError, match=r"args\[0\]\.shape\[0\] != 1"):
            traced.graph_module(torch.randn(1, 7, 8))


def test_guards_as_json() -> None:
    guards = quietly(doubled(lambda s: s[0] * 3 < s[1]), torch.randn(2, 11, 8)).guards
    assert Guards.from_json(json.loads(json.dumps(guards.to_json()))) == guards


def test_another_size_of_the_example() -> None:
    traced = quietly(doubled(lambda s: s[1] % 4 == 0), torch.randn(2, 11, 8))
    made = at_other_size(traced)
    assert made is not None
    (x,), kwargs = made
    assert kwargs == {}
    assert x.shape[0] != 2
    assert x.shape[1] != 11
    traced.graph_module(x)
    fixed = quietly(Small(lambda m, x: m.a(x.view(3, 8))), torch.randn(3, 8))
    assert at_other_size(fixed) is None


def test_a_language_model_takes_one_row_and_one_token() -> None:
    model = tiny_llama().eval()
    traced = fxprune.trace(model)
    for shape in ((1, 7), (3, 1), (1, 1)):
        ids = torch.randint(3, 90, shape)
        with torch.no_grad():
            torch.testing.assert_close(
                traced.graph_module(input_ids=ids).logits, model(input_ids=ids).logits
            )


def test_a_plain_language_model_has_one_shape_to_check_and_no_conditions() -> None:
    traced = fxprune.trace(tiny_llama())
    (node,) = traced.graph_module.graph.find_nodes(op="call_function", target=check)
    inputs, _, conditions = node.args[0]  # type: ignore[misc]
    assert [name for name, *_ in inputs] == ["input_ids"]
    assert conditions == ()


def test_a_condition_that_divides_by_zero_does_not_hold() -> None:
    """As of a size that is told by another, where that one comes to nothing."""
    condition = ("eq", ("mod", "s0", ("floordiv", "s1", 4)), 0)
    guards = Guards(ranges={"s0": (1, None), "s1": (1, None)}, conditions=(condition,))
    assert guards.allow({"s0": 6, "s1": 8})
    assert not guards.allow({"s0": 6, "s1": 3})
