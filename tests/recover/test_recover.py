"""Retraining graphs and shrunk models: alike, in place, and without a trace in the original."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.data.text import Text
from fxprune.errors import FxpruneWarning, RecoveryError
from fxprune.recover.methods import FullTraining, LoRA
from fxprune.recover.recover import recover
from tests.hf import tiny
from tests.marks import but_slow
from tests.models import Perceptron, ResidualConvNet
from tests.recover.cases import (
    IDS,
    KINDS,
    METHODS,
    assert_same,
    case,
    curve,
    options,
    plan,
    pruned,
    run,
    state_of,
)

both_kinds = pytest.mark.parametrize("kind", KINDS)
both_methods = pytest.mark.parametrize("method", METHODS)

# Grouped attention; norms of queries and keys; transposed weights; offset positions; fused weights.
FAMILIES = ["tiny", "qwen3", "gpt2", "opt", "phi3"]


# The graph and the shrunk model of one plan


@pytest.mark.parametrize("name", but_slow(FAMILIES, "gpt2", "qwen3"))
def test_one_curve(name: str) -> None:
    # Without its block before the last, so that the last layer of the shrunk model is renumbered.
    for what, method in (("width", "full"), ("both", "lora")):
        graph, shrunk = pruned("graph", what, name), pruned("shrunk", what, name)
        sizes = {sum(p.numel() for p in each.parameters()) for each in (graph, shrunk)}
        assert sizes == {plan(what, name).parameters_after}
        one, two = (run(each, METHODS[method], steps=3) for each in (graph, shrunk))
        assert one.trained == two.trained > 0
        assert curve(one) == pytest.approx(curve(two), rel=1e-4)
        assert len({round(loss, 4) for loss in curve(one)}) == 3
        ids = IDS[:3, :9]
        with torch.no_grad():
            torch.testing.assert_close(
                one.module(input_ids=ids).logits,
                two.module(input_ids=ids).logits,
                rtol=0,
                atol=1e-3,
            )


def test_the_seed_decides() -> None:
    curves = [curve(run(pruned("graph"), METHODS["lora"], steps=2, seed=s)) for s in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


# What is left as it was


@both_methods
@both_kinds
def test_the_original_does_not_change(kind: str, method: str) -> None:
    model, _ = case()
    module = pruned(kind, "mlp")
    shared = {id(p) for p in model.parameters()} & {id(p) for p in module.parameters()}
    frozen = model.model.layers[0].self_attn.q_proj.weight
    assert id(frozen) in shared
    assert len(shared) == 20  # all but three weights of each MLP
    before = state_of(model)
    frozen.requires_grad_(False)
    try:
        result = run(module, METHODS[method], validation=0.2, keep_best=False)
        flags = {n for n, p in model.named_parameters() if not p.requires_grad}
    finally:
        frozen.requires_grad_(True)
    assert_same(model, before)
    assert flags == {"model.layers.0.self_attn.q_proj.weight"}
    assert not any(each.training for each in model.modules())
    assert all(p.grad is None for p in model.parameters())
    # And what was trained is another model now.
    with torch.no_grad():
        assert not torch.equal(result.module(input_ids=IDS).logits, model(input_ids=IDS).logits)


@both_methods
@both_kinds
def test_the_module_given_comes_back(kind: str, method: str) -> None:
    module = pruned(kind).train()
    inner = module.get_submodule("model.layers.1.mlp").eval()
    module.get_parameter("model.norm.weight").requires_grad_(False)
    names = [name for name, _ in module.named_modules()]
    kept, before = type(module), state_of(module)
    try:
        result = run(module, METHODS[method])
        flags = [name for name, p in module.named_parameters() if not p.requires_grad]
    finally:
        case()[0].model.norm.weight.requires_grad_(True)  # it was shared
    assert result.module is module
    assert type(module) is kept
    assert isinstance(module, fx.GraphModule) == (kind == "graph")
    assert [name for name, _ in module.named_modules()] == names
    assert module.training
    assert not any(each.training for each in inner.modules())
    assert flags == ["model.norm.weight"]
    assert all(p.grad is None for p in module.parameters())
    changed = {n for n, tensor in module.state_dict().items() if not torch.equal(tensor, before[n])}
    linear = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    if method == "lora":
        assert changed == linear - {"lm_head.weight"}
    else:
        assert changed >= linear | {"model.embed_tokens.weight", "model.norm.weight"}


@both_kinds
def test_the_result_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    module = pruned(kind)
    for method in METHODS.values():
        run(module, method, steps=2)
    folder = fxprune.save(module, tmp_path / kind, plan=plan(), traced=case()[1])
    again: Any = fxprune.load(folder)
    assert isinstance(again, fx.GraphModule) == (kind == "graph")
    assert_same(again, state_of(module))
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, module(input_ids=IDS).logits)


def test_adapters_may_stay_apart() -> None:
    module = pruned("shrunk")
    before = module(input_ids=IDS).logits.detach()
    adapted: Any = run(module, METHODS["lora"], merge=False).module
    assert all(p.requires_grad for p in case()[0].parameters())
    assert type(adapted).__name__ == "PeftModel"
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 3
    assert all("lora" in name for name in trained)
    with torch.no_grad():
        assert not torch.equal(adapted(input_ids=IDS).logits, before)
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=IDS).logits, before)


@both_kinds
def test_twice(kind: str) -> None:
    """Adapters on a merged model, and all of it afterwards."""
    module = pruned(kind)
    one, two = (run(module, METHODS["lora"], steps=2) for _ in range(2))
    assert one.trained == two.trained
    full = run(module, METHODS["full"], steps=2)
    assert full.trained == sum(p.numel() for p in module.parameters())
    assert not any("lora" in name for name, _ in module.named_modules())


# Half precision


def test_bfloat16() -> None:
    model = tiny.llama().to(torch.bfloat16)
    found = fxprune.prune(model, pruning_ratio=0.2, criterion=fxprune.Magnitude())
    for method in METHODS.values():
        graph = fxprune.rewrite(found.traced, found.plan)
        shrunk = fxprune.shrink(model, found.plan, graph, traced=found.traced)
        for module in (graph, shrunk):
            before = state_of(module)
            losses = curve(run(module, method, learning_rate=1e-2))
            assert losses[0] == pytest.approx(5.5, abs=0.1)
            assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
            linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
            assert len(linear) == 15
            for name in linear[:-1]:  # the output layer is tied to the embedding
                weight = f"{name}.weight"
                assert not torch.equal(module.get_parameter(weight), before[weight])
            assert module(input_ids=IDS).logits.dtype == torch.bfloat16


def test_updates_too_small_for_bfloat16_add_up() -> None:
    """Full training keeps float32 beside: steps of 1e-5 on weights of 1 would be lost else."""
    module = tiny.llama(num_hidden_layers=1).to(torch.bfloat16)
    before = module.model.norm.weight.detach().clone()
    run(module, FullTraining(), steps=200, learning_rate=4e-5, schedule="constant", warmup=0)
    assert (module.model.norm.weight - before).abs().max() > 2**-8


@both_kinds
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:recovery made the validation loss no better")
def test_precision(kind: str, method: str, precision: str) -> None:
    """Student, teacher and evaluation multiply matrices in what was asked for."""
    module, teacher = pruned(kind), tiny.llama()
    last: dict[str, torch.dtype] = {}

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        who = "teacher" if layer is theirs else "trained" if layer.training else "evaluated"
        last[who] = output.dtype

    def linear(model: nn.Module) -> nn.Module:
        return model.get_submodule("model.layers.0.mlp.up_proj")

    theirs = linear(teacher)
    handles = [linear(each).register_forward_hook(note) for each in (module, teacher)]
    run(
        module,
        replace(METHODS[method], teacher=teacher),
        steps=1,
        precision=precision,
        validation=IDS[:2],
    )
    for handle in handles:
        handle.remove()
    assert last == dict.fromkeys(("trained", "evaluated", "teacher"), getattr(torch, precision))
    # Afterwards it computes as before.
    assert "forward" not in vars(module)
    assert "_original_forward" not in vars(module)


# Modules that are no language models


def images(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Three classes that are told by which channel is the brightest."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place in range(count):
        image = torch.randn(3, 16, 16, generator=generator)
        image[place % 3] += 3
        made.append({"image": image, "kind": place % 3, "name": f"image {place}"})
    return made


def batch_of(examples: list[Any]) -> dict[str, Any]:
    return {
        "image": torch.stack([each["image"] for each in examples]),
        "target": torch.tensor([each["kind"] for each in examples]),
    }


def classified(module: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return F.cross_entropy(module(batch["image"]), batch["target"])


@pytest.mark.parametrize("method", [FullTraining(), LoRA(rank=4, dropout=0.0)])
def test_a_loss_of_ones_own(method: Any) -> None:
    model = ResidualConvNet().eval()
    traced = fxprune.trace(model, (torch.randn(2, 3, 16, 16),))
    graph = fxprune.discover(traced)
    mlp = next(group for group in graph.groups if group.kind == "mlp")
    module = fxprune.rewrite(traced, fxprune.Plan.of(graph, {mlp.name: tuple(range(14))}))
    before, original = state_of(module), state_of(model)
    result = run(
        module,
        method,
        images(24),
        steps=12,
        learning_rate=3e-2,
        validation=images(9, seed=1),
        loss_fn=classified,
        collate_fn=batch_of,
    )
    assert result.module is module
    assert [each.tokens for each in result.history.steps] == [4] * 12  # examples, that is
    first, best = result.history.evaluations[0], result.history.best
    assert best is not None
    assert best.loss < first.loss - 0.3
    with torch.no_grad():
        assert not module.training
        loss = classified(module, batch_of(images(9, seed=1))).item()
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 24
    assert loss == pytest.approx(best.loss, rel=1e-5)
    for name in statistics:
        assert not torch.equal(module.state_dict()[name], before[name]), name
    assert_same(model, original)


def test_a_loss_of_ones_own_in_micro_batches() -> None:
    data = [(torch.randn(20), place % 7, f"row {place}") for place in range(18)]

    def collate(rows: list[Any]) -> dict[str, Any]:
        return {"x": torch.stack([r[0] for r in rows]), "y": torch.tensor([r[1] for r in rows])}

    def loss(module: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        assert set(batch) == {"x", "y"}
        return F.cross_entropy(module(batch["x"]), batch["y"])

    results = []
    for size in (4, 2):
        torch.manual_seed(0)
        results.append(
            run(
                Perceptron(),
                FullTraining(),
                data,
                steps=6,  # the fifth has two rows only
                micro_batch_size=size,
                loss_fn=loss,
                collate_fn=collate,
            )
        )
    assert curve(results[0]) == pytest.approx(curve(results[1]), rel=1e-4)
    for result in results:
        assert [each.tokens for each in result.history.steps] == [4, 4, 4, 4, 2, 4]


# Warnings and refusals


def test_no_better() -> None:
    with pytest.warns(FxpruneWarning, match=r"no better: \d\.\d+ before, .* lower learning rate"):
        run(pruned("graph"), METHODS["full"], validation=0.2, learning_rate=9.0, warmup=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pruned("graph"), METHODS["full"], validation=IDS, learning_rate=1e-2, warmup=0)


class NoInputIds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class NoLogits(NoInputIds):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.layer(input_ids[:, :2].float())


class NoParameters(nn.Module):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return tiny.llama()


PROSE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
TEXT = Text("t", (PROSE, "another document altogether"))


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (on_meta, {}, "LlamaForCausalLM is on meta: give it weights"),
        (NoParameters, {}, "NoParameters has no parameters"),
        (NoInputIds, {}, r"NoInputIds takes no input_ids: give recover\(loss_fn"),
        (NoLogits, {}, r"NoLogits gives logits of shape \(2, 2\) for tokens of shape"),
        (tiny.llama, {"method": "lora"}, "no method of recovery: 'lora'"),
        (tiny.llama, {"loss_fn": classified}, "say with collate_fn how to make them"),
        (
            tiny.llama,
            {"loss_fn": classified, "method": LoRA(teacher=NoLogits())},
            "a teacher teaches tokens",
        ),
        (tiny.llama, {"data": TEXT}, "give tokenizer="),
        (tiny.llama, {"batch_size": 6, "micro_batch_size": 4}, "6 sequences does not divide"),
        (tiny.llama, {"precision": "float16", "device": "cpu"}, "float16 does not train on a CPU"),
        (tiny.llama, {"steps": 0}, "steps is 0"),
        (tiny.llama, {"validation": 0.9}, r"a fraction from 0 to 0\.5"),
        (tiny.llama, {"data": []}, "nothing to train on"),
        (tiny.llama, {"data": "missing.txt", "tokenizer": tiny.tokenizer()}, "cannot be read"),
        (
            tiny.llama,
            {"data": TEXT, "evaluation": [Text("w", (PROSE,))], "tokenizer": tiny.tokenizer()},
            "1 of its 2 training documents overlap with text to evaluate on: 1 with 'w'",
        ),
    ],
)
def test_refused(made: Any, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    module, out = made(), tmp_path / "out"
    others = {"method": LoRA(), "data": IDS, **changes}
    flags = {p.requires_grad for p in module.parameters()}
    with pytest.raises(RecoveryError, match=message):
        run(module, others.pop("method"), out=out, **others)
    assert not any("lora" in name for name, _ in module.named_modules())
    assert {p.requires_grad for p in module.parameters()} == flags
    assert not out.exists()


def test_a_graph_with_a_mask() -> None:
    """It is given the mask; the padding of shorter rows changes nothing."""
    model, _ = case()
    ids = IDS[:2]
    traced = fxprune.trace(model, kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    masked = fxprune.rewrite(traced, plan("mlp"))
    rows = [
        {"input_ids": ids[: 4 + place % 5], "labels": ids[: 4 + place % 5]}
        for place, ids in enumerate(IDS.tolist())
    ]
    one, two = (run(each, FullTraining(), rows) for each in (masked, pruned("graph", "mlp")))
    assert curve(one) == pytest.approx(curve(two), rel=1e-4)


def test_the_defaults() -> None:
    result = recover(pruned("graph"), IDS, training=options(steps=2, learning_rate=None))
    assert result.history.steps[0].learning_rate == LoRA.learning_rate
    assert result.trained < sum(p.numel() for p in result.module.parameters()) / 2
    assert len(result.history.evaluations) == 2  # of two steps, at the begin and at the end
    assert result.notes == ()
