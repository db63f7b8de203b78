"""Results damaged on purpose, of every family and dtype: the oracle must see each damage.

Damage is made so that it has an effect: on tensors that lost units, on activations and residual
sums, on constants that scale values. Whether a mutant was caught never decides whether it counts.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import fxprune
from fxprune.errors import OracleError
from fxprune.plan import Plan
from fxprune.proof import oracle
from fxprune.proof.original import Original
from tests.graphs import changed_output, copied
from tests.zoo import ALIKE, BY_NAME, ZOO, built, traced

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# These do not run in half precision: grouped products of matrices as small as these, and rotary
# tables that stay in float32.
NOT_IN_HALF = ("mixtral", "chatglm_block")
CASES = [
    (entry.name, dtype)
    for entry in ZOO
    for dtype in DTYPES
    if dtype == torch.float32 or entry.name not in NOT_IN_HALF
]
# Half precision is compared the same way in all of them.
HALVES = {(name, torch.bfloat16) for name in ("llama", "perceptron")}
LEAST, ALL = 12, 500
BITS = {2: torch.int16, 4: torch.int32}
RELU = {aten.relu.default, aten.relu_.default}
ACTIVATIONS = {
    *RELU, aten.gelu.default, aten.silu.default, aten.silu_.default, aten.tanh.default,
    aten.sigmoid.default,
}  # fmt: skip

Damage = Callable[[], "contextlib.AbstractContextManager[None]"]


@dataclass(frozen=True)
class Mutant:
    """A damage.

    Attributes:
        name: what it does, and where.
        damage: does it, and undoes it.
        bits: the numbers need not see it by themselves: it is too small, or of a unit that a ReLU
            may switch off for these inputs.
    """

    name: str
    damage: Damage
    bits: bool = False


@dataclass(frozen=True)
class Case:
    """A family at a dtype, pruned, and what the original gives."""

    traced: fxprune.Traced
    plan: Plan
    small: fx.GraphModule
    expected: oracle.Reference


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def traced_as(name: str, dtype: torch.dtype) -> fxprune.Traced:
    entry = BY_NAME[name]
    attention = entry.backends[-1]
    if dtype == torch.float32:
        return traced(name, attention)
    model = copy.deepcopy(built(name, attention)).to(dtype)
    args, kwargs = entry.example()
    return fxprune.trace(model, tuple(cast(a, dtype) for a in args), kwargs)


def pruned(name: str, dtype: torch.dtype) -> Case:
    """Half of the units of every group removed."""
    original = traced_as(name, dtype)
    graph = fxprune.discover(original)
    choice = np.random.default_rng(0)
    kept = {
        group.name: np.sort(choice.permutation(group.size)[: -(-group.size // 2)]).tolist()
        for group in graph.groups
    }
    plan = Plan.of(graph, kept)
    small = fxprune.rewrite(original, plan)
    # One size: each mutant runs once.
    example = tuple(original.args) or dict(original.kwargs)
    return Case(original, plan, small, oracle.reference(original, plan, example))


# tensors


@contextlib.contextmanager
def values(tensor: torch.Tensor, wrong: torch.Tensor) -> Iterator[None]:
    before = tensor.detach().clone()
    assert not torch.equal(before, wrong), "no damage"
    with torch.no_grad():
        tensor.copy_(wrong)
        try:
            yield
        finally:
            tensor.copy_(before)


def dead(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """One kept unit is zero."""
    place = torch.tensor([tensor.shape[axis] // 2])
    return tensor.index_fill(axis, place, 0)


def swapped(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Two kept units have changed places."""
    order = torch.arange(tensor.shape[axis])
    order[[0, -1]] = order[[-1, 0]]
    return tensor.index_select(axis, order)


def next_bit(tensor: torch.Tensor) -> torch.Tensor:
    """One value is the next number."""
    wrong = tensor.clone()
    flat = wrong.view(-1).view(BITS[tensor.element_size()])
    flat[-1] ^= 1
    return wrong


Site = tuple[str, torch.Tensor, int]


def sites_of(case: Case) -> list[Site]:
    """Every axis of a float tensor that lost units: name, tensor, axis."""
    original = case.expected.original
    tensors = {**dict(case.small.named_parameters()), **dict(case.small.named_buffers())}
    return [
        (name, tensor, axis)
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
        for axis, layout in enumerate(original.graph.layouts.get(case.traced.canonical(name), ()))
        if original.resize.changed(layout)
    ]


def another_unit(case: Case, name: str, axis: int) -> torch.Tensor:
    """The tensor with one unit along the axis that should have gone instead of one that stays."""
    resize = case.expected.original.resize
    fqn = case.traced.canonical(name)
    tensor = case.traced.tensors[fqn].detach()
    for each, layout in enumerate(case.expected.original.graph.layouts[fqn]):
        if resize.changed(layout):
            index = resize.index(layout).clone()
            if each == axis:
                index[-1] = resize.removed(layout)[0]
            tensor = tensor.index_select(each, index)
    return tensor


def tensor_mutants(case: Case, choice: np.random.Generator) -> Iterator[Mutant]:
    bits = any(n.target in RELU for n in case.small.graph.nodes)
    sites = sites_of(case)
    matrices = [site for site in sites if site[1].dim() > 1]
    for place in choice.permutation(len(matrices))[:2]:
        name, tensor, axis = matrices[place]
        at = f"{name}[{axis}]"
        yield Mutant(f"dead unit {at}", functools.partial(values, tensor, dead(tensor, axis)), bits)
        if tensor.shape[axis] > 1:
            wrong = swapped(tensor, axis)
            yield Mutant(f"swapped units {at}", functools.partial(values, tensor, wrong), bits)
        other = another_unit(case, name, axis)
        yield Mutant(f"wrong unit {at}", functools.partial(values, tensor, other), bits)
    vectors = [site for site in sites if site[1].dim() == 1]
    for place in choice.permutation(len(vectors))[:1]:
        name, tensor, _ = vectors[place]
        wrong = next_bit(tensor)
        yield Mutant(f"bit of {name}", functools.partial(values, tensor, wrong), bits=True)
    for place in choice.permutation(len(matrices))[:1]:
        name, tensor, _ = matrices[place]
        wrong = next_bit(tensor)
        yield Mutant(f"bit of {name}", functools.partial(values, tensor, wrong), bits=True)
    norms = [(n, t) for n, t, _ in vectors if "norm" in n and n.endswith("weight") and len(t) > 1]
    for name, tensor in norms[:1]:
        yield Mutant(f"permuted {name}", functools.partial(values, tensor, tensor.roll(1)))
    for name, tensor in [(n, t) for n, t, _ in vectors if n.endswith("running_var")][:1]:
        yield Mutant(f"off by 2 % {name}", functools.partial(values, tensor, tensor * 1.02))


# graphs


@contextlib.contextmanager
def edited(small: fx.GraphModule, edit: Callable[[fx.Graph], None]) -> Iterator[None]:
    before = small.graph
    graph = copied(before)
    edit(graph)
    small.graph = graph
    try:
        yield
    finally:
        small.graph = before


def found(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.name == name)


def dropped(name: str, graph: fx.Graph) -> None:
    """The op is gone: what it reads stands for what it gives."""
    node = found(graph, name)
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)


def argument(name: str, place: int | str, value: Any, graph: fx.Graph) -> None:
    node = found(graph, name)
    if isinstance(place, int):
        node.update_arg(place, value)
    else:
        node.update_kwarg(place, value)


def last_channel(value: torch.Tensor) -> torch.Tensor:
    factor = torch.ones(value.shape[-1], dtype=value.dtype)
    factor[-1] = 1.01
    return value * factor


def first_row(value: torch.Tensor) -> torch.Tensor:
    factor = torch.ones(len(value), *[1] * (value.dim() - 1), dtype=value.dtype)
    factor[0] = 0.99
    return value * factor


def reads_weights(node: fx.Node) -> bool:
    """Whether any weight goes into a value."""
    seen, pending = {node}, [node]
    while pending:
        sources = pending.pop().all_input_nodes
        if any(source.op in ("get_attr", "call_module") for source in sources):
            return True
        pending += [source for source in sources if source not in seen]
        seen.update(sources)
    return False


def graph_mutants(case: Case) -> Iterator[Mutant]:
    nodes = list(case.small.graph.nodes)

    def edit(name: str, change: Callable[[fx.Graph], None]) -> Mutant:
        return Mutant(name, functools.partial(edited, case.small, change))

    yield edit("last channel", changed_output(0, last_channel))
    yield edit("first row", changed_output(0, first_row))
    yield edit("zeroed output", changed_output(0, torch.zeros_like))
    yield edit("output of another dtype", changed_output(0, torch.Tensor.double))
    for node in [n for n in nodes if n.target in ACTIVATIONS][:2]:
        yield edit(f"no {node.name}", functools.partial(dropped, node.name))
    sums = [
        n
        for n in nodes
        if n.target in (aten.add.Tensor, aten.add_.Tensor)
        and len(n.all_input_nodes) == 2
        and all(s.meta["val"].shape == n.meta["val"].shape for s in n.all_input_nodes)
        and n.meta["val"].is_floating_point()
    ]
    for node in sums[-1:]:
        yield edit(f"no sum {node.name}", functools.partial(dropped, node.name))
    scaled = [n for n in nodes if n.target is aten.scaled_dot_product_attention.default]
    for node in [n for n in scaled if "scale" in n.kwargs][:1]:
        wrong = 1.1 * node.kwargs["scale"]
        yield edit(f"scale {node.name}", functools.partial(argument, node.name, "scale", wrong))
    factors = [
        n
        for n in nodes
        if n.target in (aten.mul.Tensor, aten.div.Tensor)
        and len(n.args) == 2
        and isinstance(n.args[1], float)
        and n.meta["val"].is_floating_point()
        and reads_weights(n)  # positions may be divided to buckets, which are whole numbers
    ]
    for node in factors[:1]:
        wrong = 1.1 * node.args[1]
        yield edit(f"factor {node.name}", functools.partial(argument, node.name, 1, wrong))


def norm_mutants(case: Case) -> Iterator[Mutant]:
    for name, module in case.small.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.RMSNorm):
            yield Mutant(f"eps of {name}", functools.partial(attribute, module, "eps", 0.1))
            return


@contextlib.contextmanager
def attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def test_there_are_enough() -> None:
    """Without those in float16 too."""
    assert LEAST * sum(dtype != torch.float16 for _, dtype in CASES) >= ALL


def slow(name: str, dtype: torch.dtype) -> bool:
    return name in ALIKE or (dtype != torch.float32 and (name, dtype) not in HALVES)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}-{str(dtype)[6:]}",
            marks=pytest.mark.slow if slow(name, dtype) else (),
        )
        for name, dtype in CASES
    ],
)
def test_every_mutant_is_caught(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = pruned(name, dtype)
    before = oracle.compare(case.expected, case.small, case.traced)
    assert before.tensors
    mutants = [
        *tensor_mutants(case, np.random.default_rng(1)),
        *graph_mutants(case),
        *norm_mutants(case),
    ]
    check_bits = Original.check
    survivors = []
    for mutant in mutants:
        # What the numbers can see they must see by themselves.
        checked = check_bits if mutant.bits else lambda *given: 0
        monkeypatch.setattr(Original, "check", checked)
        with mutant.damage():
            try:
                oracle.compare(case.expected, case.small, case.traced)
            except OracleError:
                continue
            survivors.append(mutant.name)
    assert not survivors
    assert len(mutants) >= LEAST
    monkeypatch.undo()
    assert oracle.compare(case.expected, case.small, case.traced) == before, "all was undone"
