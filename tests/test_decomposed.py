"""A graph that comes in decomposed is pruned just as well as one that does not.

``run_decompositions`` makes ``addmm`` of linear layers, ``bmm`` and softmax of attention, and
primitive ops of norms. The groups must be those of the model itself.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import fxprune
from fxprune import PruneConfig
from fxprune.groups.dependency import DependencyGraph
from fxprune.passes import META, PruneProgram
from fxprune.trace.export import captured
from tests.ops.cases import CASES
from tests.ops.single import Bundle, Case, bundles, plans, prove
from tests.vision.families import BY_NAME as FAMILIES
from tests.zoo import BY_NAME, OTHER, ZOO, built, traced

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own

# What decomposing changes most; other ways to write attention out are slow.
FEW = {"llama", "resnet"}
# torch does not decompose it: what it puts for the attention of CPUs lies otherwise than the fused
# op's result, and the model has a view of that.
TORCH_FAILS = {("gpt2", "sdpa")}
# Those that have ops of their own once they are decomposed.
OFTEN = {
    "layer-norm", "group-norm", "batch-norm-plain", "instance-norm-over-features",
    "spectral-normed", "weight-normed-whole", "mv", "bilinear", "einsum-diagonal",
    "set-slice", "set-from-slice", "copy-in-place", "fill", "embedding-of-bags",
}  # fmt: skip
# Where DETR's learned queries attend to each other, which is not seen where it is written out.
LEARNED = "transformer.decoder.layers.0.self_attn."
# Groups are others than those of the op itself:
OTHERWISE = {
    # what is written goes to addresses in flat memory, which count all channels before;
    "conv-unpool",
    # the number of channels is an expression of height and width;
    "pixel-round-trip",
    # numbers that were computed from a whole size are counted, and a slice is not a window;
    "linspace", "eye", "tril", "im2col", "involution", "tensor-split",
    # what is picked by computed places is an axis of its own, and a first state of zeros is too;
    "roll", "padded-reflect", "rnn-cell",
    # and of these nothing is read.
    "expand-as-alone", "view-as-alone",
}  # fmt: skip


def few(name: str, attention: str) -> Any:
    slow = name not in FEW or attention != BY_NAME[name].backends[-1]
    return pytest.param(
        name, attention, id=f"{name}-{attention}", marks=pytest.mark.slow if slow else ()
    )


zoo = pytest.mark.parametrize(
    ("name", "attention"),
    [
        few(entry.name, attention)
        for entry in ZOO
        for attention in entry.backends
        if (entry.name, attention) not in TORCH_FAILS
    ],
)


def decomposed(model: nn.Module, args: Any, kwargs: Any) -> ExportedProgram:
    with captured(model, args, kwargs) as capture, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return capture.program.run_decompositions()


@functools.cache
def of_zoo(name: str, attention: str) -> ExportedProgram:
    return decomposed(built(name, attention), *BY_NAME[name].example())


def sites(graph: DependencyGraph) -> set[Any]:
    """Groups as values. Their names may differ: they count frozen ones of the same kind too."""
    return {
        (
            group.kind,
            group.size,
            group.normalised,
            frozenset((s.tensor, s.axis) for s in group.sites),
        )
        for group in graph.groups
    }


def proven(graph: DependencyGraph, inputs: Any) -> None:
    """Every group loses a third."""
    generator = torch.Generator().manual_seed(1)
    kept = {}
    for group in graph.groups:
        count = max(group.least, group.size * 2 // 3)
        kept[group.name] = tuple(
            sorted(torch.randperm(group.size, generator=generator)[:count].tolist())
        )
    plan = fxprune.Plan.of(graph, kept)
    fxprune.verify(graph.traced, fxprune.rewrite(graph.traced, plan), plan, inputs)


@zoo
def test_groups_and_oracle(name: str, attention: str) -> None:
    program = of_zoo(name, attention)
    targets = {str(node.target) for node in program.graph.nodes}
    assert targets.isdisjoint({"aten.linear.default", "aten.scaled_dot_product_attention.default"})
    found = fxprune.trace(program, *BY_NAME[name].example())
    graph = fxprune.discover(found)
    assert sites(graph) == sites(fxprune.discover(traced(name, attention)))
    args, kwargs = BY_NAME[name].example(*OTHER)
    proven(graph, kwargs or args)


@pytest.mark.filterwarnings("ignore::fxprune.FxpruneWarning")  # some hold where sizes differ
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "vgg_bn" else pytest.mark.slow) for name in FAMILIES],
)
def test_vision(name: str) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model, pictures = family.make().eval(), family.pictures()
    program = decomposed(model, (pictures,), {})
    graph = fxprune.discover(fxprune.trace(program, pictures))
    assert sites(graph) == {
        ("other", *rest)
        if all(tensor.startswith(LEARNED) for tensor, _ in rest[-1])
        else (kind, *rest)
        for kind, *rest in sites(fxprune.discover(fxprune.trace(model, pictures)))
    }
    proven(graph, family.pictures(3))


@pytest.mark.parametrize(
    "cases",
    [
        *bundles([case for case in CASES if case.name in OFTEN]),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in bundles([case for case in CASES if case.name not in OFTEN])
        ),
    ],
    ids=lambda cases: cases[0].name,
)
def test_ops(cases: tuple[Case, ...]) -> None:
    """The groups that each op alone has, of whatever kind, and the module itself as reference."""
    bundle = Bundle(cases).eval()
    program = decomposed(bundle, bundle.example(), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)  # some have fixed sizes
        graph = fxprune.discover(fxprune.trace(program))
    known = {f"branches.{case.name}." for case in cases if case.name not in OTHERWISE}
    found, expected = (
        {group[1:] for group in sites(each) if any(t.startswith((*known,)) for t, _ in group[-1])}
        for each in (graph, bundle.discover())
    )
    assert found == expected
    prove(graph, bundle, plans(graph, cases[0].least)[0])


@pytest.mark.slow
def test_a_language_model_as_a_program() -> None:
    """Attention heads, neurons and the residual stream; what comes out is decomposed too."""
    program = of_zoo("llama", "sdpa")
    config = PruneConfig(
        pruning_ratio=0.3, criterion="magnitude", kinds=("mlp", "attention", "channel")
    )
    result = PruneProgram(config)(program)
    small, plan = result.exported_program, result.exported_program.graph_module.meta[META]
    assert small.dialect == "ATEN"
    assert small.graph_signature.user_outputs
    assert {n.target for n in small.graph.nodes} <= {n.target for n in program.graph.nodes}
    _, kwargs = BY_NAME["llama"].example(*OTHER)
    report = fxprune.verify(fxprune.trace(program), small.module(), plan, kwargs)
    assert report.tensors
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
