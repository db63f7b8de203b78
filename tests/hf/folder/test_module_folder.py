"""Shrunk models come back bit-equal, from a stock checkpoint or by the code beside it."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

import fxprune
from fxprune.errors import CheckpointError, ShrinkError
from fxprune.plan import Plan
from tests import zoo
from tests.hf import tiny
from tests.hf.shrink.test_shrink import DECODERS, assert_equal, blocks, generate, of_zoo, on

# Families whose config has no size of a head apart from that of all heads together.
NO_HEADS = {"gpt2", "gpt_neox", "opt", "bloom", "falcon_multi_query", "falcon_grouped", "stablelm"}
# Four times the hidden size, always; chosen by index.
NO_MLP = {"bloom", "mixtral"}


def halved(
    graph: fxprune.DependencyGraph, kinds: tuple[str, ...], layer: int | None = None
) -> Plan:
    """Every group of some kinds, in one layer or in all, loses its first units."""
    kept = {
        group.name: tuple(range(group.size // 3, group.size))
        for group in graph.groups
        if group.kind in kinds and group.layer is not None and layer in (None, group.layer[1])
    }
    return Plan.of(graph, kept)


def kinds_of(name: str) -> tuple[str, ...]:
    kinds = ("mlp",) if name not in NO_MLP else ()
    return kinds if name in NO_HEADS else (*kinds, "attention")


def plans(name: str, traced: fxprune.Traced) -> Iterator[tuple[str, Plan]]:
    """Uniform, non-uniform, and depth with width."""
    graph, kinds = fxprune.discover(traced), kinds_of(name)
    if not kinds:
        return
    yield "uniform", halved(graph, kinds)
    yield "one layer", halved(graph, kinds, layer=1)
    shorter = fxprune.discover(fxprune.bypass(traced, blocks(traced)[:1]))
    yield "depth and width", halved(shorter, kinds)


def loaded_by_auto(folder: Path, name: str, **options: Any) -> Any:
    backend = zoo.BY_NAME[name].backends[-1]
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=backend, **options
    ).eval()


@on(
    DECODERS,
    *("gemma2", "gemma3", "glm", "stablelm", "gpt_neox", "mistral", "mixtral", "qwen2", "qwen3"),
    *("opt", "falcon_grouped"),
)
def test_every_family(name: str, tmp_path: Path) -> None:
    model, traced = of_zoo(name)
    inputs = zoo.BY_NAME[name].example(*zoo.OTHER)
    ids = inputs[1]["input_ids"].clamp(min=3)
    for number, (what, plan) in enumerate(plans(name, traced)):
        small: Any = fxprune.shrink(model, plan, traced=traced)
        assert type(small) is type(model)
        assert_equal(small, plan, traced, inputs)
        found = generate(small, ids)
        assert torch.equal(found, generate(small, ids, cache=False))
        folder = fxprune.save(small, tmp_path / str(number), plan=plan)
        again: Any = fxprune.load(folder)
        apart = what == "one layer"
        assert small.config.is_heterogeneous == again.config.is_heterogeneous == apart
        if apart:
            stock: Any = loaded_by_auto(folder, name, trust_remote_code=True)
            with pytest.raises(Exception, match=r"is a per-layer attribute|mismatch"):
                loaded_by_auto(folder, name)
        else:
            stock = loaded_by_auto(folder, name)
        for each in (again, stock):
            assert type(each).__name__ == type(model).__name__
            with torch.no_grad():
                assert torch.equal(each(**inputs[1]).logits, small(**inputs[1]).logits)
            assert torch.equal(generate(each, ids), found)
            assert {n for n, _ in each.named_parameters()} == {
                n for n, _ in small.named_parameters()
            }


@on([name for name in DECODERS if name in NO_HEADS], "gpt_neox", "stablelm")
def test_heads_that_no_config_can_say(name: str) -> None:
    model, traced = of_zoo(name)
    graph = fxprune.discover(traced)
    kind = "query" if name == "falcon_multi_query" else "attention"
    kept = {g.name: tuple(range(g.size - 1)) for g in graph.groups if g.kind == kind}
    with pytest.raises(ShrinkError, match=r"cannot be said in a config|numbers of a range"):
        fxprune.shrink(model, Plan.of(graph, kept), traced=traced)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, fxprune.Traced]:
    model = tiny.llama(num_hidden_layers=3)
    return model, fxprune.trace(model)


@pytest.mark.slow
def test_without_fxprune(llama: tuple[Any, fxprune.Traced], tmp_path: Path) -> None:
    model, traced = llama
    graph = fxprune.discover(traced)
    ids = torch.tensor([[5, 3, 8, 13, 21]])
    for what, layer in (("stock", None), ("remote", 1)):
        small: Any = fxprune.shrink(model, halved(graph, ("mlp", "attention"), layer))
        folder = fxprune.save(small, tmp_path / what)
        with torch.no_grad():
            torch.save(small(input_ids=ids).logits, tmp_path / "expected")
        code = (
            "import sys; sys.modules['fxprune'] = None; import torch, transformers\n"
            # How many threads share a product is how it is rounded.
            f"torch.set_num_threads({torch.get_num_threads()})\n"
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}, "
            f"trust_remote_code={what == 'remote'}).eval()\n"
            f"found = model(input_ids=torch.tensor({ids.tolist()})).logits\n"
            f"assert torch.equal(found, torch.load({str(tmp_path / 'expected')!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_values_trained_since_and_the_tokenizer(
    llama: tuple[Any, fxprune.Traced], tmp_path: Path
) -> None:
    model, traced = llama
    graph = fxprune.discover(traced)
    plan = halved(graph, ("mlp",))
    pruned = fxprune.rewrite(traced, plan)
    with torch.no_grad():
        pruned.get_submodule("model.layers.0.mlp.down_proj").weight.mul_(1.5)
    small: Any = fxprune.shrink(model, plan, pruned)
    ids = torch.tensor([[5, 3, 8]])
    with torch.no_grad():
        expected = pruned(input_ids=ids).logits
        torch.testing.assert_close(small(input_ids=ids).logits, expected, rtol=0, atol=1e-6)
    folder = fxprune.save(small, tmp_path / "m", plan=plan, tokenizer=tiny.tokenizer())
    assert Plan.load(folder / "plan.json") == plan
    again = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a b").input_ids == tiny.tokenizer()("a b").input_ids
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)


def test_saved_once_more(folder: Path, tmp_path: Path) -> None:
    """What was loaded with layers of their own sizes is saved as it was."""
    again = fxprune.save(fxprune.load(folder), tmp_path / "again")
    for name in ("modeling_fxprune.py", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    one, two = (json.loads((each / "config.json").read_text()) for each in (again, folder))
    assert one == two
    assert one["auto_map"] == {
        "AutoModel": "modeling_fxprune.LlamaModel",
        "AutoModelForCausalLM": "modeling_fxprune.LlamaForCausalLM",
    }


def test_without_the_head(folder: Path) -> None:
    """vLLM builds what is below the head, through AutoModel."""
    whole: Any = fxprune.load(folder)
    found = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(found).__name__ == "LlamaModel"
    widths = [layer.mlp.up_proj.out_features for layer in found.layers]
    assert widths == [layer.mlp.up_proj.out_features for layer in whole.model.layers]
    assert len(set(widths)) > 1
    ids = torch.tensor([[5, 3, 8]])
    with torch.no_grad():
        expected = whole.model(input_ids=ids).last_hidden_state
        assert torch.equal(found(input_ids=ids).last_hidden_state, expected)


def test_the_original_may_be_consumed(tmp_path: Path) -> None:
    model: Any = tiny.llama(num_hidden_layers=3)
    result = fxprune.prune(
        model, criterion=fxprune.Magnitude(), pruning_ratio=0.2, ranking="global", consume=True
    )
    small: Any = fxprune.shrink(model, result.plan, result.graph_module)
    assert sum(p.numel() for p in small.parameters()) == result.plan.parameters_after


def test_a_number_of_heads_that_llama_refuses(tmp_path: Path) -> None:
    model: Any = tiny.llama(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=4
    )
    graph = fxprune.discover(fxprune.trace(model))
    kept = {g.name: (0, 2, 3) for g in graph.groups if g.kind == "attention"}
    small: Any = fxprune.shrink(model, Plan.of(graph, kept))
    with pytest.warns(fxprune.FxpruneWarning, match="saved as MistralForCausalLM"):
        folder = fxprune.save(small, tmp_path / "m")
    again: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert type(again).__name__ == "MistralForCausalLM"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, small(input_ids=ids).logits)
        assert torch.equal(fxprune.load(folder)(input_ids=ids).logits, small(input_ids=ids).logits)


_CONTINUE = """
import sys; sys.modules["fxprune"] = None
import transformers
folder, remote = sys.argv[1:]
load = transformers.AutoModelForCausalLM.from_pretrained
model = load(folder, trust_remote_code=remote == "True").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
ids = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=5, do_sample=False)[0]))
"""


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_continues_text_without_fxprune(tmp_path: Path) -> None:
    from fxprune.hf.open.models import load_model

    loaded = load_model("smollm2")
    model: Any = loaded.model
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(model, graph, fxprune.PeakToPeak(activations=False), kinds=("mlp",))
    for ranking in ("local", "global"):
        uniform = ranking == "local"
        goal = fxprune.Budget(units=0.34) if uniform else fxprune.Budget(params=0.8)
        plan = fxprune.select(graph, scores, budget=goal, kinds=("mlp",), ranking=ranking)
        small: Any = fxprune.shrink(model, plan, traced=traced)
        assert small.config.is_heterogeneous != uniform
        folder = fxprune.save(small, tmp_path / ranking, plan=plan, tokenizer=loaded.tokenizer)
        command = [sys.executable, "-c", _CONTINUE, str(folder), str(not uniform)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ids = loaded.tokenizer("The capital of France is", return_tensors="pt")  # type: ignore[misc]
        expected = small.generate(**ids, max_new_tokens=5, do_sample=False)[0]
        assert done.stdout.strip() == loaded.tokenizer.decode(expected)  # type: ignore[union-attr]
        again: Any = fxprune.load(folder)
        assert torch.equal(again.generate(**ids, max_new_tokens=5, do_sample=False)[0], expected)


@pytest.fixture(params=["uniform", "apart"])
def shrunk(request: pytest.FixtureRequest, llama: tuple[Any, fxprune.Traced]) -> Any:
    """Uniform, or with one layer of its own size; its weights are its own."""
    model, traced = llama
    graph = fxprune.discover(traced)
    apart = request.param == "apart"
    small = fxprune.shrink(model, halved(graph, ("mlp", "attention"), 1 if apart else None))
    assert small.config.is_heterogeneous == apart
    return copy.deepcopy(small)


def test_static_cache_and_left_padding(shrunk: Any) -> None:
    ids = torch.tensor([[5, 3, 8, 13, 21, 7], [9, 4, 11, 6, 17, 12]])
    found = generate(shrunk, ids)
    assert torch.equal(found, generate(shrunk, ids, cache_implementation="static"))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    together = generate(shrunk, ids.masked_fill(mask == 0, 0), attention_mask=mask)
    assert torch.equal(together[:1], found[:1])
    assert torch.equal(together[1:], generate(shrunk, ids[1:, 3:]))


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
def test_training(shrunk: Any, tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row} for row in torch.arange(3, 35).view(4, 8)]
    before = {n: p.detach().clone() for n, p in shrunk.named_parameters()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(shrunk, arguments, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    assert all(not torch.equal(p, before[n]) for n, p in shrunk.named_parameters())
    trainer.save_model(str(tmp_path / "m"))
    folder = fxprune.save(shrunk.eval(), tmp_path / "saved")
    ids = data[0]["input_ids"][None]
    again: Any = fxprune.load(folder)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, shrunk(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")
def test_peft(shrunk: Any) -> None:
    import peft

    adapted: Any = peft.get_peft_model(shrunk, peft.LoraConfig(r=2, target_modules="all-linear"))
    ids = torch.arange(3, 11)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 3
    assert all(p.grad is not None for p in trained.values())
    merged: Any = adapted.merge_and_unload()
    with torch.no_grad():
        assert torch.equal(merged(input_ids=ids).logits, shrunk(input_ids=ids).logits)


def test_a_graph_is_converted(
    llama: tuple[Any, fxprune.Traced], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxprune.cli.app import app

    model, traced = llama
    shorter = fxprune.bypass(traced, ["model.layers.0:block"])
    plan = halved(fxprune.discover(shorter), ("mlp", "attention"), 1)
    graph = fxprune.rewrite(traced, plan)
    with torch.no_grad():
        graph.get_submodule("model.layers.2.mlp.up_proj").weight.mul_(1.5)
    fxprune.save(graph, tmp_path / "g", plan=plan, traced=traced, tokenizer=tiny.tokenizer())
    app(["convert", str(tmp_path / "g"), str(tmp_path / "m")], standalone_mode=False)
    assert "saved in" in capsys.readouterr().out
    again: Any = fxprune.load(tmp_path / "m")
    expected = fxprune.save(fxprune.shrink(model, plan, graph), tmp_path / "e", plan=plan)
    for name in ("model.safetensors", "config.json", "modeling_fxprune.py"):
        assert (tmp_path / "m" / name).read_bytes() == (expected / name).read_bytes()
    assert (tmp_path / "m" / "tokenizer.json").is_file()
    assert type(again).__name__ == "LlamaForCausalLM"
    with pytest.raises(CheckpointError, match="is a checkpoint of transformers already"):
        app(["convert", str(tmp_path / "m"), str(tmp_path / "n")], standalone_mode=False)


def test_a_graph_needs_its_plan(llama: tuple[Any, fxprune.Traced], tmp_path: Path) -> None:
    _, traced = llama
    small = fxprune.rewrite(traced, halved(fxprune.discover(traced), ("mlp",)))
    with pytest.raises(CheckpointError, match="give plan and traced"):
        fxprune.save(small, tmp_path / "m")
    with pytest.raises(CheckpointError, match="Linear is neither a GraphModule nor"):
        fxprune.save(torch.nn.Linear(2, 2), tmp_path / "m")  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


# Folders from anybody


@pytest.fixture
def folder(llama: tuple[Any, fxprune.Traced], tmp_path: Path) -> Path:
    model, traced = llama
    small = fxprune.shrink(model, halved(fxprune.discover(traced), ("mlp",), layer=1))
    return fxprune.save(small, tmp_path / "m")


def forged(folder: Path, **facts: Any) -> None:
    """With sums that are right: who writes a file can write those too."""
    from fxprune.hf.folder import checkpoint

    found = json.loads((folder / "fxprune.json").read_text()) | facts
    for name in found["sha256"]:
        if (folder / name).is_file():
            found["sha256"][name] = checkpoint._sha256(folder / name)
    (folder / "fxprune.json").write_text(json.dumps(found))


def test_a_pickle_is_not_opened(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="may be a pickle"):
        fxprune.load(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "..", "a/b.safetensors"])
def test_an_index_that_leads_elsewhere(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match="not a file of its folder"):
        fxprune.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    forged(folder, sha256={name: "0"})
    with pytest.raises(CheckpointError, match="not a file of its folder"):
        fxprune.load(folder)


def test_a_link_that_leads_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="not a file of its folder"):
        fxprune.load(folder)


def test_a_truncated_shard(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        fxprune.load(folder)
    forged(folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        fxprune.load(folder)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, and there are"),
        ("num_hidden_layers", 2, "unexpected keys|cannot be rebuilt|cannot be read|refused"),
        ("hidden_size", 64, "cannot be loaded|mismatched|refused"),
        ("per_layer_config", {"9": {"intermediate_size": 3}}, "refused"),
    ],
)
def test_a_config_of_another_model(folder: Path, entry: str, value: Any, message: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | {entry: value}
    (folder / "config.json").write_text(json.dumps(config))
    forged(folder)
    with pytest.raises(fxprune.FxpruneError, match=message):
        fxprune.load(folder)


def test_code_of_the_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_fxprune.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fxprune.load(folder)
    assert not (tmp_path / "ran").exists()


def test_no_pickles_in_the_library() -> None:
    """No call that unpickles or runs code of a file, in the whole package."""
    risky = {"pickle", "marshal", "shelve", "dill", "joblib"}
    for file in Path(fxprune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & risky, where
                assert getattr(node, "module", None) not in risky, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("exec", "eval", "compile"), where
                options = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert options.get("trust_remote_code", "False") == "False", where
                if called == "torch.load":
                    assert options.get("weights_only") == "True", where
