"""What is a removable branch or block, what is not, and what says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import DepthError
from fxprune.plan import Plan
from tests.branches.small import EXAMPLE, WIDTH, Block, Small, Stack, check, small, traced

Body = Callable[[Any, Tensor], Tensor]


def found(body: Body, **modules: nn.Module) -> fxprune.Branches:
    return fxprune.find_branches(small(body, **modules))


def exits(branches: fxprune.Branches) -> dict[str, tuple[str, str]]:
    """Where each branch enters and leaves."""
    return {unit.name: (unit.entry.name, unit.exit.name) for unit in branches.of("branch")}


# Not a branch


def tanh_gelu(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(0.5 * h * (1 + torch.tanh(0.797885 * (h + 0.044715 * h**3))))


def rotary(m: Any, x: Tensor) -> Tensor:
    q = m.a(x)
    one, other = q.chunk(2, -1)
    return m.b(q * m.c.weight.cos()[0] + torch.cat((-other, one), -1) * m.c.weight.sin()[0])


def positions(m: Any, x: Tensor) -> Tensor:
    return x + m.table(torch.arange(x.shape[0]))


def projected_positions(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[0]).float()[:, None].expand(-1, WIDTH)
    return x + m.a(places)


def adapter(m: Any, x: Tensor) -> Tensor:
    return m.a(x) + m.c(m.b(x))


def projection_shortcut(m: Any, x: Tensor) -> Tensor:
    return torch.relu(m.a(x) + m.c(torch.relu(m.b(x))))


def gate(m: Any, x: Tensor) -> Tensor:
    g = torch.sigmoid(m.a(x))
    return g * x + (1 - g) * m.b(x)


def product(m: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.a(x))


def activation(m: Any, x: Tensor) -> Tensor:
    return x + torch.relu(x)


def difference(m: Any, x: Tensor) -> Tensor:
    return x - m.a(x)


def weighted_sum(m: Any, x: Tensor) -> Tensor:
    return torch.add(m.a(x), x, alpha=2)


def wider(m: Any, x: Tensor) -> Tensor:
    """A sum that broadcasts cannot be replaced by the stream."""
    return x[None] + m.a(x)[:, None]


@pytest.mark.parametrize(
    "body",
    [
        tanh_gelu,
        rotary,
        positions,
        projected_positions,
        adapter,
        projection_shortcut,
        gate,
        product,
        activation,
        difference,
        weighted_sum,
        wider,
    ],
)
def test_no_branch(body: Body) -> None:
    branches = found(body, table=nn.Embedding(9, WIDTH))
    assert not branches.units
    assert not branches.refused


def test_positions_made_from_the_size_of_the_stream() -> None:
    """Even where the stream is the input itself, whose size they read."""
    model = small(projected_positions, first=nn.Identity())
    assert not fxprune.find_branches(model).units


def test_two_convolutions_are_no_branch() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1, stride=2), nn.Conv2d(3, 6, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    branches = fxprune.find_branches(fxprune.trace(Down(), (torch.randn(2, 3, 8, 8),)))
    assert not branches.units
    assert not branches.refused


# A branch


def test_what_a_branch_is() -> None:
    model = small(lambda m, x: x + m.b(torch.relu(m.a(x))))
    (unit,) = fxprune.find_branches(model).of("branch")
    assert (unit.kind, unit.entry.name, unit.skip.name, unit.exit.name) == (
        "mlp",
        "linear",
        "linear",
        "linear_2",
    )
    assert sorted(unit.parameters) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert {"linear_1", "relu", "linear_2"} <= {node.name for node in unit.inside}
    assert "4 parameters of its own" in str(unit)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.a(x) + x,
        lambda m, x: x + F.dropout(m.a(x)),
        lambda m, x: x + 0.1 * m.a(x),
        lambda m, x: 0.5 * x + m.a(x),
        lambda m, x: x + (m.a(x) + 1e-3),
        lambda m, x: (x.double() + m.a(x).double()).float(),
        lambda m, x: x + m.a(x) + m.a(x).new_ones(WIDTH),
        lambda m, x: torch.relu(x + m.a(x)),
    ],
    ids=range(8),
)
def test_forms_of_one_branch(body: Body) -> None:
    model = small(body)
    (unit,) = fxprune.find_branches(model).of("branch")
    assert unit.entry.name == "linear"
    check(model, unit.name)


def test_a_stream_that_is_scaled_and_shifted_for_each_feature() -> None:
    vectors = {name: nn.PReLU(WIDTH) for name in ("shift", "scale")}  # which hold just that
    model = small(lambda m, x: m.a(x) + (x + m.shift.weight) * m.scale.weight, **vectors)
    (unit,) = fxprune.find_branches(model).of("branch")
    assert unit.entry.name == "linear"
    assert unit.parameters == ("a.weight", "a.bias")
    check(model, unit.name)


def test_kinds() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
            self.conv = nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            x = x + self.o(scores.softmax(-1) @ self.v(x))
            q, k, v = self.q(x), self.k(x), self.v(x)
            x = x + self.o(F.scaled_dot_product_attention(q, k, v))
            x = x + self.o((self.q(x) @ self.k(x).transpose(1, 2)) @ self.v(x))
            x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
            x = x + self.v(x.softmax(-1))
            return (x + self.down(torch.relu(self.up(x)))).sum(-1)

    branches = fxprune.find_branches(fxprune.trace(Mixed(), (torch.randn(2, 5, 8),)))
    kinds = [unit.kind for unit in branches.of("branch")]
    assert kinds == ["attention", "attention", "other", "other", "mlp", "mlp"]
    assert [unit.kind for unit in branches.of("attention")] == ["attention"] * 2
    with pytest.raises(DepthError, match="no unit 'layer': take block, attention, mlp, other"):
        branches.of("layer")


def test_parallel_branches_and_the_norm_they_share() -> None:
    model = small(
        lambda m, x: (h := m.norm(x), x + m.a(h) + m.b(torch.relu(h)))[1], norm=nn.LayerNorm(WIDTH)
    )
    branches = fxprune.find_branches(model)
    assert exits(branches) == {":mlp": ("linear", "linear_1"), ":mlp#2": ("linear", "linear_2")}
    assert not any("norm" in name for unit in branches.units.values() for name in unit.parameters)
    assert "norm.weight" not in fxprune.bypass(model, [":mlp"]).dropped
    assert "norm.weight" in fxprune.bypass(model, [":mlp", ":mlp#2"]).dropped
    check(model, ":mlp")
    check(model, ":mlp", ":mlp#2")


@pytest.mark.parametrize("behind", [nn.Dropout(), None])
def test_parallel_branches_behind_a_dropout_or_a_cast(behind: nn.Module | None) -> None:
    """Without either of them nothing is left to be added."""

    def body(m: Any, x: Tensor) -> Tensor:
        both = m.a(x).double() + m.b(x).double()
        return x + (both if behind is None else m.behind(both)).float()

    model = small(body, behind=behind or nn.Identity())
    assert len(fxprune.find_branches(model).of("mlp")) == 2
    for names in ([":mlp"], [":mlp#2"], [":mlp", ":mlp#2"]):
        check(model, *names)
    nodes = fxprune.bypass(model, [":mlp", ":mlp#2"]).graph_module.graph.nodes
    assert not any("add" in node.name or "dropout" in node.name for node in nodes)


def test_an_adapter_belongs_to_the_branch_it_adapts() -> None:
    model = small(lambda m, x: (h := torch.relu(m.a(x)), x + (m.b(h) + m.d(m.c(h))))[1])
    (unit,) = fxprune.find_branches(model).of("branch")
    assert len(unit.parameters) == 8
    check(model, unit.name)


def test_the_stream_is_what_all_terms_come_from() -> None:
    """In x + (u + g(u)) with u = f(x) the inner sum is a branch, and has a branch."""

    def body(m: Any, x: Tensor) -> Tensor:
        u = m.a(x)
        return (u + m.c(torch.relu(m.b(u)))) + x

    model = small(body)
    branches = fxprune.find_branches(model)
    assert exits(branches) == {":mlp": ("linear_1", "linear_3"), ":mlp#2": ("linear", "add")}
    for names in ([":mlp"], [":mlp#2"], [":mlp", ":mlp#2"]):
        check(model, *names)
    assert fxprune.bypass(model, [":mlp", ":mlp#2"]).removed == (":mlp#2",)


def test_a_skip_around_everything() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        y = x + m.a(x)
        y = y + m.b(torch.relu(y))
        return y + x

    model = small(body)
    names = list(exits(fxprune.find_branches(model)))
    assert len(names) == 3
    for name in names:
        check(model, name)
    check(model, *names)


def test_a_term_that_is_added_twice_is_one_branch() -> None:
    model = small(lambda m, x: (h := m.a(x), x + h + h)[1])
    assert list(exits(fxprune.find_branches(model))) == [":mlp"]
    check(model, ":mlp")


# Not removable


def test_a_term_that_is_an_output_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.a(x)
            term = self.b(x)
            return x + term, term

    branches = fxprune.find_branches(traced(Two()))
    assert not branches.units
    assert branches.refused[":mlp"] == "its value linear_1 is also used by output"


def test_a_value_inside_that_is_used_elsewhere() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        return m.c(x + m.b(h)) * h

    branches = found(body)
    assert not branches.units
    reason = branches.refused[":mlp"]
    assert re.fullmatch(r"its value relu is also used by mul at small\.py:\d+", reason)


def test_a_term_that_another_term_is_computed_from() -> None:
    """x + a(x) + b(a(x)): without the first, the second would be another."""
    model = small(lambda m, x: (h := m.a(x), x + h + m.b(h))[1])
    branches = fxprune.find_branches(model)
    assert exits(branches) == {":mlp#2": ("linear", "linear_2")}
    assert "linear_1 is also used by linear_2" in branches.refused[":mlp"]
    check(model, ":mlp#2")


def test_a_size_that_is_read_elsewhere_holds_no_branch_back() -> None:
    """Only the shape of a value inside is needed later, and that stays."""
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False
    )
    whole = fxprune.trace(model.eval(), (torch.randn(5, 13, 8),))
    branches = fxprune.find_branches(whole)
    assert [unit.kind for unit in branches.of("branch")] == ["attention", "mlp"] * 2
    assert len(branches.of("block")) == 2
    assert not branches.refused
    for name in ("layers.0:attention", "layers.0:block"):
        plan = fxprune.Plan.of(fxprune.discover(fxprune.bypass(whole, [name])), {})
        fxprune.verify(whole, fxprune.rewrite(whole, plan), plan, (torch.randn(3, 17, 8),))


class TwoExits(nn.Module):
    """A block whose hidden values another block reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = x + self.a(x)
        return middle + self.b(torch.relu(middle)), middle


def test_a_block_with_two_exits() -> None:
    class Reader(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x, first = self.layers[0](x)
            x, _ = self.layers[1](x)
            return self.head(x * first)

    model = traced(Reader(TwoExits(), TwoExits()))
    branches = fxprune.find_branches(model)
    assert [block.name for block in branches.of("block")] == ["layers.1:block"]
    assert branches.refused == {
        "layers.0:block": "one value must leave it, and these do: add, add_1"
    }
    assert len(branches.of("mlp")) == 4
    check(model, *(unit.name for unit in branches.of("mlp")))


def test_a_block_that_changes_the_width() -> None:
    class Widening(Block):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), x], -1)

    class Wide(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](self.embed(x))

    branches = fxprune.find_branches(traced(Wide(Widening())))
    assert list(branches.units) == ["layers.0:mlp"]
    assert "linear enters and cat of another shape or dtype leaves" in branches.refused.values()


def test_the_whole_model_is_no_block() -> None:
    branches = found(lambda m, x: x + m.a(x))
    assert not branches.of("block")
    assert branches.refused == {
        ":block": "it is the whole model, with all from linear to add",
    }


# Names


def test_an_unknown_name_offers_close_ones() -> None:
    branches = fxprune.find_branches(traced(Stack(Block(), Block())))
    with pytest.raises(
        DepthError, match=r"Stack has no .* 'layers.0.mlp'; did you mean layers.0:mlp"
    ):
        branches["layers.0.mlp"]
    with pytest.raises(DepthError, match=r"no residual branch or block 'zzz'$"):
        fxprune.bypass(traced(Stack(Block())), ["zzz"])


def test_a_refused_name_says_why() -> None:
    model = small(lambda m, x: (h := m.a(x), x + h + m.b(h))[1])
    for ask in (fxprune.find_branches(model).__getitem__, lambda n: fxprune.bypass(model, [n])):
        with pytest.raises(DepthError, match=r":mlp cannot be removed: its value linear_1 is also"):
            ask(":mlp")


# Places


def test_blocks_are_the_innermost_list_of_modules_alike() -> None:
    """A list of stages, each with a list of blocks, as in Swin or ConvNeXt."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = traced(Stack(Stage(), Stage()))
    blocks = [unit.place for unit in fxprune.find_branches(model).of("block")]
    assert blocks == [f"layers.{i}.blocks.{j}" for i in range(2) for j in range(2)]
    check(model, "layers.0.blocks.1:block", "layers.1.blocks.0:mlp")


def test_numbered_parts_of_several_classes_are_no_blocks() -> None:
    """T5 numbers the attention and the MLP of a block."""

    class Other(Block):
        pass

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.ModuleList([Block(), Other()])

        def forward(self, x: Tensor) -> Tensor:
            return self.part[1](self.part[0](x))

    branches = fxprune.find_branches(traced(Stack(Layer(), Layer())))
    assert [unit.name for unit in branches.of("block")] == ["layers.0:block", "layers.1:block"]
    assert branches["layers.0:block"].branches == ("layers.0:mlp", "layers.0:mlp#2")


def test_each_run_of_a_shared_block_is_one() -> None:
    """As in ALBERT, or with one module under two numbers."""

    class Looped(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.layers[0](x))

    shared = Block()
    blocks = fxprune.find_branches(traced(Looped(shared, shared, Block()))).of("block")
    assert [unit.name for unit in blocks] == [
        "layers.0:block",
        "layers.0@1:block",
        "layers.1:block",
        "layers.2:block",
    ]
    assert [len(unit.parameters) for unit in blocks] == [0, 0, 0, 4]


def test_a_graph_module_has_the_units_of_its_model() -> None:
    model = Stack(Block(), Block())
    again = fxprune.trace(torch.fx.symbolic_trace(model), (EXAMPLE,))
    assert len(fxprune.find_branches(again).of("mlp")) == 2


def test_found_once() -> None:
    model = traced(Stack(Block()))
    assert fxprune.find_branches(model) is fxprune.find_branches(model)


def test_finding_needs_no_weights_and_changes_nothing() -> None:
    with torch.device("meta"):
        model = Small(lambda m, x: x + m.a(x)).eval()
    on_meta = fxprune.trace(model, (EXAMPLE.to("meta"),))
    code = on_meta.graph_module.code
    assert list(fxprune.find_branches(on_meta).units) == [":mlp"]
    assert on_meta.graph_module.code == code


def test_sizes_that_are_equal_in_the_example_stay_apart() -> None:
    """To ask torch whether two symbolic sizes are equal makes one of them, for good."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(31, 9), nn.Embedding(64, 9)
            self.head = nn.Linear(9, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.tokens(x) + self.positions(torch.arange(x.shape[1])))

    traced = fxprune.trace(Positions(), torch.randint(31, (10, 10)))
    fxprune.find_branches(traced)
    node = next(n for n in traced.graph_module.graph.nodes if "add" in str(n.target))
    batch, length, _ = node.meta["val"].shape
    assert traced.sizes.value(batch) != traced.sizes.value(length)


def test_a_computed_weight_makes_no_mixture_of_activations() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.utils.parametrizations.weight_norm(nn.Linear(8, 12, bias=False))
            self.down = nn.Linear(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    model = nn.Sequential(nn.Linear(5, 8), Normed(), nn.Linear(8, 3)).eval()
    assert "1:mlp" in fxprune.find_branches(fxprune.trace(model, torch.randn(2, 4, 5))).units


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).relu()


class Written(nn.Module):
    """What enters the first block was written into, as pieces of a picture are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.layers = nn.ModuleList(Adding() for _ in range(2))

    def forward(self, x: Tensor, without: int | None = None) -> Tensor:
        y = self.stem(x)
        y[..., 2] = 1.0
        y[:, :1] = x[:, :1] * 3
        for number, layer in enumerate(self.layers):
            y = y if number == without else layer(y)
        return y


@pytest.mark.parametrize("kind", ["block", "mlp"])
@pytest.mark.parametrize("number", [0, 1])
def test_what_was_written_into_the_entry_stays(number: int, kind: str) -> None:
    model, x = Written().eval(), torch.randn(4, 5, 6)
    traced = fxprune.trace(model, (x,))
    shorter = fxprune.bypass(traced, [f"layers.{number}:{kind}"])
    plan = Plan.of(fxprune.discover(shorter), {})
    small = fxprune.rewrite(traced, plan)
    torch.testing.assert_close(small(x), model(x, without=number))
    fxprune.verify(traced, small, plan)
