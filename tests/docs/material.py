"""What the examples on the pages find there: tiny models, texts, and a few names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import fxprune
from fxprune.data.text import builtin
from tests import remote
from tests.hf import pictures, tiny
from tests.hf.vocabulary.kinds import KINDS
from tests.measure import material
from tests.zoo import built

# Where blocks go, some must be there: the first four and the last two stay.
DEEP = 12
Names = dict[str, Any]


@dataclass(frozen=True)
class Needs:
    """What one page takes for granted; nothing, for a page to be followed word for word.

    Attributes:
        names: makes the variables its Python starts with.
        files: each makes some files in the folder where everything runs.
        prints: what its Python must have printed, somewhere.
    """

    names: Callable[[], Names] = dict
    files: tuple[Callable[[Path], object], ...] = ()
    prints: str = ""


def model(path: Path, layers: int = 2) -> None:
    """MODEL, a checkpoint with its tokenizer, and a config.json elsewhere."""
    made = tiny.llama(num_hidden_layers=layers)
    made.save_pretrained(path / "MODEL")
    tiny.tokenizer().save_pretrained(path / "MODEL")
    made.config.save_pretrained(path / "path" / "to")


def deep_model(path: Path) -> None:
    """The same with more layers."""
    model(path, DEEP)


def four_layers(path: Path) -> None:
    """The same with two that may go between two that stay."""
    model(path, 4)


def plan(path: Path) -> None:
    """plan.json, for MODEL."""
    graph = fxprune.discover(fxprune.trace(LlamaForCausalLM.from_pretrained(path / "MODEL")))
    kept = {g.name: tuple(range(1, g.size)) for g in graph.groups if g.kind == "mlp"}
    fxprune.Plan.of(graph, kept).save(path / "plan.json")


def scores(path: Path) -> None:
    """scores.safetensors, for MODEL."""
    llama = tiny.llama()
    graph = fxprune.discover(fxprune.trace(llama))
    fxprune.estimate(llama, graph, fxprune.Magnitude()).save(path / "scores.safetensors")


def pruned(path: Path) -> None:
    """What ``fxprune prune`` leaves behind, under the names that pages give it."""
    plan(path)
    for name in ("pruned", "DIR"):
        fxprune.apply(path / "plan.json", path / "MODEL", path / name)


SERVED = {"hidden_size": 64, "intermediate_size": 1024, "head_dim": 16}


def served(path: Path) -> None:
    """MODEL, whose MLPs have four times 256 units."""
    tiny.llama(**SERVED).save_pretrained(path / "MODEL")
    tiny.tokenizer().save_pretrained(path / "MODEL")


def texts(path: Path) -> None:
    """train.jsonl and test.txt, without text in common, and questions."""
    calibration, evaluation = builtin()
    rows = ({"text": record[:300]} for record in calibration.records[:12])
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "test.txt").write_text(max(evaluation.records, key=len)[:8000])
    material.write(path / "piqa_val.jsonl", material.piqa())


def _worded() -> tuple[LlamaForCausalLM, Any]:
    """A model whose tokens are words and parts of words, and its tokenizer."""
    tokenizer = KINDS["gpt2"]()
    end = tokenizer.eos_token_id
    size = {"max_position_embeddings": 512, "vocab_size": len(tokenizer), "eos_token_id": end}
    return tiny.llama(**size), tokenizer


def words(path: Path) -> None:
    """The same as MODEL, and train.jsonl."""
    for each in _worded():
        each.save_pretrained(path / "MODEL")
    texts(path)


def _lossy() -> Names:
    made, tokenizer = _worded()
    calibration, evaluation = builtin()
    return {
        "fxprune": fxprune,
        "model": made,
        "tokenizer": tokenizer,
        "text": list(calibration.records[:9]),
        "other": list(evaluation.records[:3]),
    }


def adapter(path: Path) -> None:
    """LoRA as PEFT saves it."""
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"])
    get_peft_model(tiny.llama(), config).save_pretrained(path / "adapter")


def _zoo() -> Names:
    ids = torch.randint(101, (4, 13))
    return {"model": built("llama", "sdpa"), "ids": ids, "calibration": [{"input_ids": ids}]}


def _tiny(**changes: object) -> Names:
    ids = torch.randint(256, (4, 40))
    return {
        "fxprune": fxprune,
        "model": tiny.llama(**changes),
        "tokenizer": tiny.tokenizer(),
        "ids": ids,
        "calibration": [{"input_ids": ids}],
    }


def _four_layers() -> Names:
    return _tiny(num_hidden_layers=4)


def _deep() -> Names:
    return _tiny(num_hidden_layers=DEEP)


def _traced(**changes: object) -> Names:
    found = _tiny(**changes)
    traced = fxprune.trace(found["model"])
    return {**found, "traced": traced, "graph": fxprune.discover(traced)}


def _pruned(**changes: object) -> Names:
    found = _traced(**changes)
    scores = fxprune.estimate(found["model"], found["graph"], fxprune.Magnitude())
    chosen = fxprune.select(found["graph"], scores, 0.2)
    small = fxprune.rewrite(found["traced"], chosen)
    found |= {"scores": scores, "plan": chosen}
    return {**found, "small": small, "graph_module": small}


def _training() -> Names:
    """A model to train, and another."""
    return {**_tiny(intermediate_size=64), "fresh": tiny.llama(intermediate_size=64)}


def _experts() -> Names:
    """A Llama, and a mixture of experts beside it."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        vocab_size=tiny.VOCABULARY,
    )  # fmt: skip
    moe = MixtralForCausalLM(config).eval()
    return {**_traced(), "moe": moe, "moe_graph": fxprune.discover(fxprune.trace(moe))}


def _roomy() -> Names:
    """Half of the parameters can go."""
    return _pruned(intermediate_size=400)


def _remote() -> Names:
    return {"original": remote.original, "rows": remote.rows, "inputs_of": remote.inputs_of}


def _seeing() -> Names:
    model, inputs = pictures.seen_whole()
    return {"model": model, "inputs": inputs}


NEEDS: dict[str, Needs] = {
    "README.md": Needs(files=(model, texts)),
    "docs/tour.md": Needs(_zoo, (model, pruned, texts), prints="model.layers.0.mlp:units mlp 40"),
    "docs/configuration.md": Needs(_four_layers, (four_layers,), prints="neurons"),
    "docs/depth.md": Needs(_deep, (deep_model,)),
    "docs/importance.md": Needs(_experts),
    "docs/inspection.md": Needs(_pruned, (model,)),
    "docs/evaluation.md": Needs(_pruned, (texts,)),
    "docs/recovery.md": Needs(_roomy, (model, pruned, texts)),
    "docs/saving.md": Needs(_pruned, (model, plan, adapter)),
    "docs/vocabulary.md": Needs(_lossy, (words,), prints="tokens: 901 before, 500 after"),
    "docs/how-to/choosing.md": Needs(_traced, (model, texts)),
    "docs/how-to/criterion.md": Needs(_traced),
    "docs/how-to/large-models.md": Needs(files=(model, scores)),
    "docs/how-to/many-devices.md": Needs(_tiny, (model,)),
    "docs/how-to/non-uniform.md": Needs(_traced, (model,)),
    "docs/how-to/pictures.md": Needs(_seeing, prints="from_pretrained"),
    "docs/how-to/while-training.md": Needs(_training, prints="True"),
    "docs/how-to/serve.md": Needs(
        lambda: _tiny(**SERVED), (served,), prints="mlx takes multiples of 256"
    ),
    "docs/how-to/remote-code.md": Needs(_remote, prints="['position_ids', 'attention_mask']"),
    "docs/tutorial.md": Needs(files=(model,), prints="7204 -> 3578"),
}
# What a page says and a test cannot have: a model of that name that is fetched.
STANDS_FOR = {"smollm2": "MODEL"}
