"""Run tasks with lm-eval's harness, on transformers models and on graphs."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.measure.perplexity import logits
from fxprune.measure.silence import silent
from fxprune.progress import step
from fxprune.trace.inputs import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: its name.
        data: the file or dataset that the questions are from; empty for a group of tasks.
        metric: as lm-eval calls it: ``acc``, ``acc_norm``, ...
        value: of the metric.
        stderr: its standard error, as lm-eval computes it; None where it does not.
        n: questions that were asked.
        examples: how many came before each question.
        version: of the task, in lm-eval.
    """

    task: str
    data: str
    metric: str
    value: float
    stderr: float | None
    n: int
    examples: int
    version: str


class _WithLogits(nn.Module):
    """What lm-eval needs of a model, around a graph."""

    def __init__(self, graph_module: nn.Module, config: PreTrainedConfig | None) -> None:
        super().__init__()
        self.graph_module, self.config = graph_module, config
        self.device = device_of(graph_module)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits(self.graph_module(input_ids=input_ids)))

    def tie_weights(self) -> None:
        """Tied weights of a graph are one tensor already."""


def language_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    batch_size: int = 4,
) -> Any:
    """lm-eval's ``HFLM`` of a model that is here already.

    Args:
        model: a transformers model, or a GraphModule of one, called with ``input_ids=``.
        tokenizer: of the model; a copy is used.
        config: of the original, for a GraphModule: says how long a text may be.
        batch_size: rows per forward pass.
    """
    from lm_eval.models.huggingface import HFLM

    given: Any = _WithLogits(model, config) if isinstance(model, fx.GraphModule) else model
    return HFLM(
        pretrained=given,
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
    )


def run(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None,
    loaded: Mapping[str, Any],
    *,
    limit: int | None = None,
    batch_size: int = 4,
    progress: bool = True,
) -> list[TaskScore]:
    """Run tasks as lm-eval's ``simple_evaluate`` does, with its seeds.

    Args:
        model: see :func:`language_model`.
        tokenizer: of the model.
        config: see :func:`language_model`.
        loaded: from :func:`fxprune.measure.tasks.load`.
        limit: only the first questions of each task.
        batch_size: rows per forward pass.
        progress: show what runs.

    Returns:
        One entry per task and metric, in lm-eval's order.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    bars = progress and sys.stderr.isatty()
    names = ", ".join(loaded["tasks"])
    with step(f"tasks: {names}", progress and not bars), silent(bars):
        from lm_eval.evaluator import evaluate

        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        found: Any = evaluate(
            language_model(model, tokenizer, config, batch_size=batch_size),
            {part: loaded[part] for part in ("tasks", "groups", "group_map")},
            limit=limit,
            log_samples=False,
        )
    return [score for name in found["results"] for score in _scores(name, found, loaded["data"])]


def _scores(name: str, found: Mapping[str, Any], data: Mapping[str, str]) -> list[TaskScore]:
    entries: dict[str, Any] = found["results"][name]
    samples = found["n-samples"]
    members = [name] if name in samples else found["group_subtasks"].get(name, [])
    n = sum(samples[each]["effective"] for each in members if each in samples)
    scores = []
    for key, value in entries.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = entries.get(f"{metric}_stderr,{filtered}")
        known = isinstance(stderr, int | float) and math.isfinite(stderr)
        scores.append(
            TaskScore(
                task=name,
                data=data.get(name, ""),
                metric=metric if filtered == "none" else key,
                value=float(value),
                stderr=float(stderr) if known and stderr is not None else None,
                n=n,
                examples=int(found["n-shot"].get(name) or 0),
                version=str(found["versions"].get(name, "")),
            )
        )
    return scores
