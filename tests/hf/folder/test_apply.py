"""A plan applied to files gives what it gives in memory, byte for byte, or nothing at all."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import fxprune
from fxprune.errors import CheckpointError, FxpruneError, PlanError, ShrinkError
from fxprune.hf.folder.shards import WEIGHTS
from fxprune.plan import Plan
from tests.hf import tiny
from tests.hf.folder.test_module_folder import halved
from tests.marks import but_slow
from tests.zoo import BY_NAME, disturb


def model_of(name: str) -> Any:
    if name == "llama":
        model = tiny.llama(num_hidden_layers=3)
    else:
        model = BY_NAME[name].make("sdpa").eval()  # type: ignore[assignment]
    disturb(model)
    return model


@functools.cache
def made(name: str) -> tuple[Any, fxprune.Traced]:
    model = model_of(name)
    return model, fxprune.trace(model)


def plan_of(name: str, what: str) -> Plan:
    _, traced = made(name)
    if what.startswith("depth"):
        first = fxprune.find_branches(traced).of("block")[0].name
        traced = fxprune.bypass(traced, [first])
    kinds = () if what == "depth" else ("mlp",) if name == "gpt2" else ("mlp", "attention")
    layer = 1 if what.endswith("one layer") else None
    return halved(fxprune.discover(traced), kinds, layer)


def tensors_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as there:
            for name in there.keys():  # noqa: SIM118
                tensor = there.get_tensor(name)
                found[name] = (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
    return found


@pytest.mark.parametrize("name", but_slow(["llama", "gpt2", "qwen3"], "qwen3"))
@pytest.mark.parametrize(
    "what",
    but_slow(["uniform", "one layer", "depth", "depth and one layer"], "one layer"),
)
def test_equals_what_is_done_in_memory(name: str, what: str, tmp_path: Path) -> None:
    model, traced = made(name)
    plan = plan_of(name, what)
    plan.save(tmp_path / "plan.json")
    expected = fxprune.save(
        fxprune.shrink(model, plan, traced=traced), tmp_path / "expected", plan=plan
    )
    model.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "single")
    assert len(list((tmp_path / "whole").glob("*.safetensors"))) > 1
    for source in ("whole", "single"):
        found = fxprune.apply(tmp_path / "plan.json", tmp_path / source, tmp_path / f"of {source}")
        assert tensors_of(found) == tensors_of(expected)
        assert {p.name for p in expected.iterdir()} <= {p.name for p in found.iterdir()} | {
            "model.safetensors"
        }
        assert (found / "config.json").read_text() == (expected / "config.json").read_text()
        ids = torch.tensor([[5, 3, 8, 13]])
        with torch.no_grad():
            assert torch.equal(
                fxprune.load(found)(input_ids=ids).logits,
                fxprune.load(expected)(input_ids=ids).logits,
            )
    names = [p.name for p in expected.iterdir()]
    assert "model.safetensors" in names
    for file in names:
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


def test_in_half_precision_with_a_tokenizer(tmp_path: Path) -> None:
    model: Any = model_of("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    tiny.tokenizer().save_pretrained(tmp_path / "whole")
    plan = plan_of("llama", "one layer")
    expected = fxprune.save(fxprune.shrink(model, plan), tmp_path / "expected")
    found = fxprune.apply(plan, tmp_path / "whole", tmp_path / "found")
    one, two = (folder / "model.safetensors" for folder in (found, expected))
    assert one.read_bytes() == two.read_bytes()
    assert (found / "config.json").read_text() == (expected / "config.json").read_text()
    assert transformers.AutoTokenizer.from_pretrained(found)("a").input_ids
    assert fxprune.load(found).dtype == torch.bfloat16


@pytest.mark.parametrize("what", ["uniform", "one layer"])
def test_experts_that_a_checkpoint_has_one_by_one(what: str, tmp_path: Path) -> None:
    model = tiny.experts("Mixtral")
    traced = fxprune.trace(model)
    plan = halved(fxprune.discover(traced), ("mlp",), 1 if what == "one layer" else None)
    model.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    expected = fxprune.save(
        fxprune.shrink(model, plan, traced=traced), tmp_path / "expected", plan=plan
    )
    found = fxprune.apply(plan, tmp_path / "whole", tmp_path / "found")
    assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}
    for file in expected.iterdir():
        assert (found / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_sibling(tmp_path: Path) -> None:
    """A fine-tune of the model that the plan was made on."""
    sibling = model_of("llama")
    disturb(sibling, seed=7)
    sibling.save_pretrained(tmp_path / "whole")
    plan = plan_of("llama", "uniform")
    found: Any = fxprune.load(fxprune.apply(plan, tmp_path / "whole", tmp_path / "found"))
    pruned = fxprune.rewrite(fxprune.trace(sibling), plan)
    ids = torch.tensor([[5, 3, 8, 13]])
    with torch.no_grad():
        torch.testing.assert_close(
            found(input_ids=ids).logits, pruned(input_ids=ids).logits, rtol=0, atol=1e-6
        )


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fxprune.cli.app import app

    model, _ = made("llama")
    model.save_pretrained(tmp_path / "whole")
    plan = plan_of("llama", "uniform")
    plan.save(tmp_path / "plan.json")
    arguments = [str(tmp_path / each) for each in ("plan.json", "whole", "small")]
    app(["apply", *arguments], standalone_mode=False)
    small = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == plan.parameters_after
    assert "saved in" in capsys.readouterr().out


_SLOWLY = """
import sys, time
import fxprune
from fxprune.hf.folder import shards
stream = shards.write_stream
def slow(file, kinds, tensor):
    def one(name):
        print(name, flush=True)
        time.sleep(0.2)
        return tensor(name)
    return stream(file, kinds, one)
shards.write_stream = slow
fxprune.apply(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True], ids=["new", "over an older one"])
def test_killed_half_way(before: bool, tmp_path: Path) -> None:
    model, _ = made("llama")
    model.save_pretrained(tmp_path / "whole", max_shard_size="20KB")
    plan_of("llama", "uniform").save(tmp_path / "plan.json")
    target = tmp_path / "small"
    if before:
        fxprune.apply(plan_of("llama", "depth"), tmp_path / "whole", target)
    older = {p.name: p.read_bytes() for p in target.iterdir()} if before else {}
    command = [sys.executable, "-c", _SLOWLY]
    command += [str(tmp_path / each) for each in ("plan.json", "whole", "small")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(6):  # in the middle of some tensor
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.1)
    if not before:
        assert not target.exists()
        return
    assert {p.name: p.read_bytes() for p in target.iterdir()} == older
    fxprune.load(target)


def test_refusals(tmp_path: Path) -> None:
    model, _ = made("llama")
    model.save_pretrained(tmp_path / "whole")
    target = tmp_path / "small"
    with pytest.raises(PlanError, match="the plan is for another model"):
        fxprune.apply(plan_of("gpt2", "uniform"), tmp_path / "whole", target)
    with pytest.raises(PlanError, match="cannot read the plan"):
        fxprune.apply(tmp_path / "none.json", tmp_path / "whole", target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor"):
        fxprune.apply(plan_of("llama", "uniform"), tmp_path / "empty", target)
    shutil.copytree(tmp_path / "whole", tmp_path / "quantised")
    tensors = {n: t.to(torch.float8_e4m3fn) for n, t in model.state_dict().items()}
    save_file(tensors, tmp_path / "quantised" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="has no value without its scale"):
        fxprune.apply(plan_of("llama", "uniform"), tmp_path / "quantised", target)
    graph = fxprune.discover(made("llama")[1])
    kept = {g.name: tuple(range(1, g.size)) for g in graph.groups if g.name.endswith("v_dim")}
    with pytest.raises(ShrinkError, match="cannot be said in a config"):
        fxprune.apply(Plan.of(graph, kept), tmp_path / "whole", target)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(CheckpointError, match="was not written by fxprune"):
        fxprune.apply(plan_of("llama", "uniform"), tmp_path / "whole", tmp_path / "mine")
    assert not target.exists()


@pytest.mark.parametrize("damage", ["truncated", "index", "names", "pickle", "layers"])
def test_sources_from_anybody(damage: str, tmp_path: Path) -> None:
    model, _ = made("llama")
    whole = tmp_path / "whole"
    model.save_pretrained(whole, max_shard_size="20KB")
    index = whole / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    if damage == "truncated":
        file = sorted(whole.glob("*.safetensors"))[1]
        file.write_bytes(file.read_bytes()[:-50])
    elif damage == "index":
        data["weight_map"]["model.norm.weight"] = "../../secret.safetensors"
        index.write_text(json.dumps(data))
    elif damage == "names":
        save_file({"odd": torch.zeros(1)}, sorted(whole.glob("*.safetensors"))[0])
    elif damage == "pickle":
        (whole / "pytorch_model.bin").write_bytes(b"")
    else:
        config = json.loads((whole / "config.json").read_text()) | {"num_hidden_layers": 10**9}
        (whole / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        FxpruneError, match=r"damaged|not a file of its folder|calls oth|pickle|there"
    ):
        fxprune.apply(plan_of("llama", "uniform"), whole, tmp_path / "small")
    assert {p.name for p in tmp_path.iterdir()} == {"whole"}
