"""What the tests of recovery share: small models with their graphs and plans, data, and runs."""

from __future__ import annotations

import functools
import gc
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.plan import Plan
from fxprune.recover.methods import FullTraining, LoRA, Method
from fxprune.recover.recover import Recovery, recover
from fxprune.recover.settings import Training
from tests import zoo
from tests.hf import tiny
from tests.hf.folder.test_module_folder import halved, kinds_of
from tests.hf.shrink.test_shrink import blocks

Row = dict[str, list[int]]

IDS = torch.randint(3, zoo.VOCABULARY, (20, 12), generator=torch.Generator().manual_seed(1))
KINDS = ("graph", "shrunk")
METHODS: dict[str, Method] = {"lora": LoRA(rank=2, dropout=0.05), "full": FullTraining()}


def options(**changes: Any) -> Training:
    """Four steps of four rows."""
    return Training(**{"steps": 4, "batch_size": 4, "learning_rate": 3e-3, **changes})


def run(module: nn.Module, method: Method, data: Any = IDS, **others: Any) -> Recovery:
    """Retrain with :func:`options`, and without validation unless it is asked for."""
    names = Training.__dataclass_fields__.keys() & others.keys()
    training = options(**{name: others.pop(name) for name in names})
    return recover(module, data, method, training=training, **{"validation": 0, **others})


def curve(result: Recovery) -> list[float]:
    """All losses of a run: of the steps, then of the evaluations."""
    history = result.history
    return [each.loss for each in (*history.steps, *history.evaluations)]


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all values."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_same(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The module has these values, to the bit."""
    found = module.state_dict()
    assert found.keys() == state.keys()
    assert [name for name in state if not torch.equal(found[name], state[name])] == []


def varied(count: int, seed: int = 0, prompts: bool = False) -> list[Row]:
    """Rows of different lengths, perhaps with labels for their second half alone."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Row] = []
    for place in range(count):
        size = 3 + 5 * place % 13
        ids = torch.randint(3, zoo.VOCABULARY, (size,), generator=generator).tolist()
        hidden = size // 2 if prompts else 0
        rows.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:]})
    return rows


@torch.no_grad()
def loss_of(module: Any, rows: list[Row]) -> float:
    """Negative log-likelihood per predicted token that counts, row by row, without padding."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        predicted = module(input_ids=ids).logits[0, :-1]
        total += F.cross_entropy(predicted, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def rows_of(ids: torch.Tensor) -> list[Row]:
    """Token ids as rows."""
    return [{"input_ids": row, "labels": list(row)} for row in ids.tolist()]


def case(name: str = "tiny") -> tuple[Any, fxprune.Traced]:
    """A model without dropout of its own, values disturbed, and its graph. Do not change it."""
    return _case(name)


@functools.cache
def _case(name: str) -> tuple[Any, fxprune.Traced]:
    if name == "tiny":
        model: Any = tiny.llama(
            num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, head_dim=8
        )
    else:
        made: Any = zoo.BY_NAME[name].make(zoo.BY_NAME[name].backends[-1])
        # A graph has no dropout but where that is a module.
        for option in vars(made.config):
            if option.endswith(("dropout", "pdrop")):
                setattr(made.config, option, 0.0)
        torch.manual_seed(0)
        model = type(made)._from_config(made.config).eval()
    zoo.disturb(model)
    traced = fxprune.trace(model)
    # Trainer collects garbage after each run. All that stays is none, and is not looked through.
    gc.collect()
    gc.freeze()
    return model, traced


def plan(what: str = "width", name: str = "tiny") -> Plan:
    """What goes: ``width`` or ``mlp``, ``depth`` (the block before the last), both, ``channel``."""
    traced = case(name)[1]
    if what in ("depth", "both"):
        traced = fxprune.bypass(traced, blocks(traced)[-2:-1])
    graph = fxprune.discover(traced)
    if what == "channel":
        (group,) = (group for group in graph.groups if group.kind == "channel")
        return Plan.of(graph, {group.name: tuple(i for i in range(group.size) if i % 4 != 1)})
    all_kinds = ("mlp", "attention") if name == "tiny" else kinds_of(name)
    return halved(graph, {"depth": (), "mlp": ("mlp",)}.get(what, all_kinds))


def pruned(kind: str, what: str = "width", name: str = "tiny") -> Any:
    """A fresh ``graph`` or ``shrunk`` model. What it can, it shares with the original."""
    model, traced = case(name)
    if kind == "graph":
        return fxprune.rewrite(traced, plan(what, name))
    return fxprune.shrink(model, plan(what, name), traced=traced, share=True)
