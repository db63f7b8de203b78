"""Recovery: a step against a plain PEFT + Trainer loop, and of the graph against the shrunk model.

``pytest benches/bench_recovery.py -s``. One run holds all of it, in turns, on a Llama of SmolLM2's
width with 8 of its layers, a fifth of its parameters pruned, random weights, batches of 8 x 128.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import fxprune
from benches.bench_speed import SMALL
from benches.models import SMOLLM2
from benches.sizes import pick
from fxprune.recover.methods import LoRA
from fxprune.recover.recover import recover
from fxprune.recover.settings import Training

ROUNDS, STEPS, ROWS, LENGTH = pick(quick=(1, 2, 2, 16), cpu=(5, 4, 8, 128))
CONFIG: dict[str, Any] = pick(quick=SMALL, cpu={**SMOLLM2, "num_hidden_layers": 8})
IDS = torch.randint(
    0, CONFIG["vocab_size"], (ROWS * STEPS, LENGTH), generator=torch.Generator().manual_seed(0)
)


class Clock(TrainerCallback):
    """Seconds of each step, from its begin to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def plain(small: nn.Module) -> tuple[list[float], list[float]]:
    """PEFT and Trainer as their users write them."""
    names = [n for n, m in small.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    adapted = get_peft_model(small, LoraConfig(r=8, lora_alpha=16, target_modules=names))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=ROWS,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                use_cpu=True,
                seed=0,
                data_seed=0,
            ),
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in IDS],
            callbacks=[clock],
        )
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    adapted.unload()
    return clock.seconds, losses


def ours(module: nn.Module) -> tuple[list[float], list[float]]:
    done = recover(
        module,
        IDS,
        LoRA(dropout=0.0),
        training=Training(
            steps=STEPS,
            batch_size=ROWS,
            micro_batch_size=ROWS,
            length=LENGTH,
            learning_rate=1e-3,
            schedule="constant",
            warmup=0.0,
        ),
        validation=0.0,
        device="cpu",
    )
    return (
        [step.seconds for step in done.history.steps],
        [step.loss for step in done.history.steps],
    )


def test_step(bench: Any) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    result = fxprune.prune(model, pruning_ratio=0.2, criterion="magnitude", ranking="local")
    small = fxprune.shrink(model, result.plan, result.graph_module)
    runs: dict[str, Callable[[], tuple[list[float], list[float]]]] = {
        "plain": lambda: plain(small),
        "shrunk": lambda: ours(small),
        "graph": lambda: ours(result.graph_module),
    }
    seconds, losses = bench.run(in_turns, runs)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    overhead, graph = middle["shrunk"] / middle["plain"], middle["graph"] / middle["shrunk"]
    bench.row(
        f"A step of {ROWS} x {LENGTH} tokens, LoRA of rank 8, float32",
        {
            "plain PEFT + Trainer, s": middle["plain"],
            "recover, shrunk model, s": middle["shrunk"],
            "recover, graph, s": middle["graph"],
        },
    )
    # The same data, in the same order, from the same weights: the first losses are equal.
    assert abs(losses["plain"][0] - losses["shrunk"][0]) < 1e-3
    torch.testing.assert_close(losses["graph"], losses["shrunk"], rtol=1e-4, atol=1e-4)
    bench.at_most("recover / plain PEFT + Trainer", overhead, 1.05)
    bench.at_most("graph / shrunk model", graph, 1.1)


def in_turns(
    runs: dict[str, Callable[[], tuple[list[float], list[float]]]],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the steps of each run, the first of each left out, and its first losses."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        order = list(runs)[number % 3 :] + list(runs)[: number % 3]
        for name in order:
            spent, found = runs[name]()
            losses.setdefault(name, found)
            if number:  # the first round warms up
                seconds[name] += spent[1:]
    return seconds, losses
