"""What the tests of recovery share: small models with their graphs and plans, data, and runs."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

import fxprune
from fxprune.plan import Plan
from fxprune.recover import FullTraining, LoRA, Method, Recovery, Training, recover
from tests import zoo
from tests.hf import tiny
from tests.hf.test_module_folder import halved, kinds_of
from tests.hf.test_shrink import blocks

ROWS, LENGTH = 20, 12
IDS = torch.randint(3, zoo.VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
KINDS = ("graph", "shrunk")
METHODS: dict[str, Method] = {"lora": LoRA(rank=2, dropout=0.05), "full": FullTraining()}

Case = tuple[Any, fxprune.Traced]


def options(**changes: Any) -> Training:
    """Four steps of four rows."""
    return Training(**{"steps": 4, "batch_size": 4, "learning_rate": 3e-3, **changes})


def run(module: nn.Module, method: Method, data: Any = IDS, **others: Any) -> Recovery:
    """Retrain with :func:`options`, without validation unless it is asked for."""
    names = Training.__dataclass_fields__.keys() & others.keys()
    training = options(**{name: others.pop(name) for name in names})
    return recover(module, data, method, training=training, **{"validation": 0, **others})


def curve(result: Recovery) -> list[float]:
    """All losses of a run: of steps, then of evaluations."""
    history = result.history
    return [each.loss for each in (*history.steps, *history.evaluations)]


@functools.cache
def case(name: str = "tiny") -> Case:
    """A model without dropout of its own, its values disturbed, and its graph. Do not change it."""
    if name == "tiny":
        model: PreTrainedModel = tiny.llama(
            num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, head_dim=8
        )
    else:
        made: Any = zoo.BY_NAME[name].make(zoo.BY_NAME[name].backends[-1])
        # A graph is traced without dropout but where it is a module.
        for option in vars(made.config):
            if option.endswith(("dropout", "pdrop")):
                setattr(made.config, option, 0.0)
        model = type(made)._from_config(made.config).eval()
    zoo.disturb(model)
    return model, fxprune.trace(model)


@functools.cache
def plan(what: str = "width", name: str = "tiny") -> Plan:
    """What is left: ``width``, ``mlp``, ``depth`` (no second block), ``both`` or ``channel``."""
    _, traced = case(name)
    kinds = {"depth": (), "mlp": ("mlp",), "channel": ()}.get(what, kinds_of(name))
    if name == "tiny" and what in ("width", "both"):
        kinds = ("mlp", "attention")
    if what in ("depth", "both"):
        traced = fxprune.bypass(traced, blocks(traced)[-2:-1])
    graph = fxprune.discover(traced)
    if what == "channel":
        (group,) = (group for group in graph.groups if group.kind == "channel")
        return Plan.of(graph, {group.name: tuple(i for i in range(group.size) if i % 4 != 1)})
    return halved(graph, kinds)


def pruned(kind: str, what: str = "width", name: str = "tiny") -> Any:
    """A fresh ``graph`` or ``shrunk`` model; what it can share with the original, it does."""
    model, traced = case(name)
    if kind == "graph":
        return fxprune.rewrite(traced, plan(what, name))
    return fxprune.shrink(model, plan(what, name), traced=traced)
