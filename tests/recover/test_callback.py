"""Pruning while transformers' Trainer trains, against a loop written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import fxprune
from fxprune import Gradual, GradualPruner, PruningCallback
from fxprune.errors import RecoveryError
from fxprune.recover.segments import switch, switched_on
from tests.hf import tiny

IDS = torch.randint(0, 256, (64, 12), generator=torch.Generator().manual_seed(0))
ROWS: Any = [{"input_ids": row, "labels": row} for row in IDS]
PLAIN: dict[str, Any] = {"criterion": "magnitude", "compensation": None, "ranking": "uniform"}


class InOrder(Trainer):
    def _get_train_sampler(self, *args: Any, **options: Any) -> Any:
        return SequentialSampler(ROWS)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0, "learning_rate": 1e-2,
        "lr_scheduler_type": "linear", "weight_decay": 0.1, **options,
    }  # fmt: skip
    return TrainingArguments(str(folder), **given)


def train(folder: Path, model: Any, callback: PruningCallback, **options: Any) -> Trainer:
    trainer = InOrder(
        model=model, args=arguments(folder, **options), train_dataset=ROWS, callbacks=[callback]
    )
    trainer.train()
    return trainer


def test_it_is_what_a_loop_by_hand_does(tmp_path: Path) -> None:
    """With accumulated gradients, two groups and a schedule of the learning rate."""
    schedule = Gradual(at={2: 0.1, 4: 0.2})
    model: Any = tiny.llama(intermediate_size=64)
    held = model
    callback = PruningCallback(schedule, **PLAIN)
    trainer = train(tmp_path, model, callback, gradient_accumulation_steps=2)
    assert trainer.model is held
    assert trainer.model_wrapped is held

    twin: Any = tiny.llama(intermediate_size=64).train()
    decayed = [p for p in twin.parameters() if p.dim() > 1]
    others = [p for p in twin.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 6)
    pruner = GradualPruner(twin, optimizer, schedule, **PLAIN)
    for step in range(1, 7):
        for part in range(2):
            ids = IDS[(8 * (step - 1) + 4 * part) % 64 :][:4]
            small: Any = pruner.model
            (small(input_ids=ids, labels=ids).loss / 2).backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        pruner.after(step)
    assert callback.pruner is not None
    assert callback.pruner.plan == pruner.plan
    twins = dict(pruner.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, twins[name], rtol=0, atol=1e-6), name
    assert model.num_parameters() <= 0.8 * tiny.llama(intermediate_size=64).num_parameters()


def test_scores_of_the_batches_and_checkpoints_of_its_size(tmp_path: Path) -> None:
    model: Any = tiny.llama(intermediate_size=64)
    seen: list[Any] = []
    model.register_forward_hook(lambda module, args, output: seen.append(module))
    switch(model, "enable")({"use_reentrant": False})
    callback = PruningCallback(Gradual(0.2, end=4, every=2), batches=2, ranking="uniform")
    train(
        tmp_path, model, callback, save_strategy="steps", save_steps=3, max_steps=6,
        bf16=True,
    )  # fmt: skip
    assert callback.pruner is not None
    whole = callback.pruner.plan.parameters_before
    assert switched_on(model)
    assert seen[-1] is model  # a hook of the user's stays
    sizes = [
        AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}").num_parameters()
        for step in (3, 6)
    ]
    assert sizes == [plan.parameters_after for plan in callback.pruner.plans]
    assert sizes[1] == model.num_parameters() <= 0.8 * whole
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
        ids = IDS[:2]
        assert torch.allclose(again(ids).logits, model.eval()(ids).logits.float(), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        ({"max_steps": 3}, Gradual(0.1, end=5), "the schedule ends after step 5, the run after 3"),
        (
            {
                "load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps",
                "save_steps": 2, "eval_steps": 2,
            },
            Gradual(0.1, end=5),
            "trained with load_best_model_at_end",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(
    options: dict[str, Any], schedule: Gradual, message: str, tmp_path: Path
) -> None:
    model = tiny.llama()
    trainer = InOrder(
        model=model, args=arguments(tmp_path, **options), train_dataset=ROWS, eval_dataset=ROWS,
        callbacks=[PruningCallback(schedule)],
    )  # fmt: skip
    with pytest.raises(RecoveryError, match=message):
        trainer.train()


def test_a_run_that_goes_on_and_what_is_no_model_of_transformers(tmp_path: Path) -> None:
    model = tiny.llama()
    train(tmp_path, model, PruningCallback(Gradual(at={3: 0.1}), **PLAIN), save_strategy="steps",
          save_steps=4)  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    trainer = InOrder(
        model=again, args=arguments(tmp_path), train_dataset=ROWS,
        callbacks=[PruningCallback(Gradual(at={3: 0.1}), **PLAIN)],
    )  # fmt: skip
    with pytest.raises(RecoveryError, match="goes on after step 4, and what went from step 3 on"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    graph: Any = fxprune.rewrite(fxprune.trace(model), fxprune.Plan.of(graph_of(model), {}))
    other = InOrder(
        model=graph, args=arguments(tmp_path), train_dataset=ROWS,
        callbacks=[PruningCallback(Gradual(at={3: 0.1}))],
    )  # fmt: skip
    with pytest.raises(RecoveryError, match="is not a transformers model: merge adapters first"):
        other.train()


def graph_of(model: Any) -> fxprune.DependencyGraph:
    return fxprune.discover(fxprune.trace(model))
