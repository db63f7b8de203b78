"""The loss of a step and of an evaluation by hand, and of a loss that is not a number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fxprune.data.rows import collate
from fxprune.errors import RecoveryError
from fxprune.recover import runs
from fxprune.recover.trainer import TENSORS
from tests.models import Perceptron
from tests.recover.cases import (
    IDS,
    METHODS,
    assert_same,
    curve,
    loss_of,
    pruned,
    rows_of,
    run,
    state_of,
    varied,
)

FULL = METHODS["full"]


def two_steps(rows: Any, **others: Any) -> list[float]:
    return curve(run(pruned("shrunk"), FULL, rows, steps=2, warmup=0, **others))


# The loss by hand


def test_the_first_step() -> None:
    rows = rows_of(IDS[:8])
    by_hand = loss_of(pruned("shrunk"), rows)
    for size in (8, 2, None):
        history = run(
            pruned("graph"), FULL, IDS[:8], steps=1, batch_size=8, micro_batch_size=size
        ).history
        (step,) = history.steps
        assert step.loss == pytest.approx(by_hand, rel=1e-5)
        assert step.tokens == 8 * 11  # the first of a row is not predicted
        assert step.gradient_norm > 0.1


@pytest.mark.parametrize("prompts", [False, True])
def test_rows_of_different_lengths(prompts: bool) -> None:
    """A mean over the tokens that count of the whole batch, however it is cut and padded."""
    rows = varied(8, prompts=prompts)
    by_hand = loss_of(pruned("shrunk"), rows)
    whole = two_steps(rows, batch_size=8, micro_batch_size=8)
    assert whole[0] == pytest.approx(by_hand, rel=1e-5)
    assert whole[1] < whole[0]
    for size in (1, 4):
        parts = two_steps(rows, batch_size=8, micro_batch_size=size)
        assert parts == pytest.approx(whole, rel=1e-4)


def test_an_incomplete_batch() -> None:
    rows = varied(6)
    result = run(pruned("graph"), FULL, rows, steps=4, micro_batch_size=2, learning_rate=1e-12)
    one, two = (sum(each.tokens for each in result.history.steps[at : at + 2]) for at in (0, 2))
    assert one == two == sum(len(row["labels"]) - 1 for row in rows)
    # Both epochs see every row once: weighed by their tokens, the steps are the mean of all.
    steps = result.history.steps[:2]
    mean = sum(each.loss * each.tokens for each in steps) / one
    assert mean == pytest.approx(loss_of(pruned("shrunk"), rows), rel=1e-5)


def test_prompts_do_not_count() -> None:
    """What is hidden may be anything, as a label; as an input it matters."""
    rows = varied(4, prompts=True)
    masked, shown = (two_steps(each) for each in (rows, rows_of_inputs(rows)))
    assert masked != pytest.approx(shown, rel=1e-3)
    tokens = run(pruned("graph"), FULL, rows, steps=1).history.steps[0].tokens
    assert tokens == sum(label != -100 for row in rows for label in row["labels"][1:])


def rows_of_inputs(rows: Any) -> Any:
    return [{"input_ids": r["input_ids"], "labels": list(r["input_ids"])} for r in rows]


def test_only_embeddings_of_the_batch_learn() -> None:
    """An output of the prompt gets no gradient: its own loss does not count."""
    module = pruned("shrunk")
    prompt, response = [5, 6, 7, 8], [9, 10]
    rows = [{"input_ids": prompt + response, "labels": [-100] * 4 + response}]
    found: list[torch.Tensor] = []
    hook = module.lm_head.register_full_backward_hook(lambda m, i, o: found.append(o[0].clone()))
    run(module, FULL, rows, steps=1, batch_size=1)
    hook.remove()
    (gradient,) = found
    assert gradient.shape[:2] == (1, 6)
    assert gradient[0].abs().sum(-1).ne(0).tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_is_per_token(size: int) -> None:
    validation = varied(7, seed=3, prompts=True)
    result = run(
        pruned("graph"),
        FULL,
        validation,
        validation=validation,
        micro_batch_size=size,
        keep_best=False,
        learning_rate=1e-2,
        warmup=0,
    )
    first, *_, last = result.history.evaluations
    assert (first.step, last.step) == (0, 4)
    assert first.loss == pytest.approx(loss_of(pruned("shrunk"), validation), rel=1e-5)
    assert last.loss == pytest.approx(loss_of(result.module, validation), rel=1e-5)


# Not finite


class Poisoned(nn.Module):
    """A model that gives NaN from a training pass on, the first being 1."""

    def __init__(self, inner: nn.Module, when: int) -> None:
        super().__init__()
        self.inner, self.when, self.passes = inner, when, 0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(input_ids=input_ids).logits
        if not self.training:
            return logits
        self.passes += 1
        return logits * math.nan if self.passes >= self.when else logits


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / runs.CHECKPOINTS).iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_no_number(method: str, tmp_path: Path) -> None:
    model = pruned("shrunk")
    module, before = Poisoned(model, 6), state_of(model)
    out = tmp_path / "out"
    with pytest.raises(RecoveryError) as error:
        # Two passes in a step, so the sixth is in the third.
        run(
            module, METHODS[method], out=out, steps=8, micro_batch_size=2, evaluate_every=1,
            checkpoints=3,
        )  # fmt: skip
    assert "the loss is nan at step 3; the last good checkpoint is" in str(error.value)
    assert "lower learning rate" in str(error.value)
    checkpoint = out / runs.CHECKPOINTS / "checkpoint-2"
    assert str(checkpoint) in str(error.value)
    assert runs.last_checkpoint(out / runs.CHECKPOINTS) == checkpoint
    assert checkpoints(out) == ["checkpoint-1", "checkpoint-2"]
    state = json.loads((checkpoint / runs.STATE).read_text())
    assert state["global_step"] == 2
    tensors = load_file(checkpoint / TENSORS)
    assert tensors
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    # What was given is as it was, or trained so far, and can be tried again.
    assert not any("lora" in name for name, _ in module.named_modules())
    assert [n for n, p in module.named_parameters() if p.grad is not None] == []
    assert all(p.requires_grad for p in module.parameters())
    assert not model.training
    if method == "lora":
        assert_same(model, before)
    module.when = 100
    run(module, METHODS[method], steps=2)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.raises(RecoveryError, match="is nan at step 1; no checkpoint was written"):
        run(Poisoned(pruned("shrunk"), 1), FULL, out=tmp_path / "out")


@pytest.mark.parametrize("validation", [0, 0.2])
def test_a_learning_rate_far_too_high(validation: float, tmp_path: Path) -> None:
    """The second step ruins the weights; a checkpoint of them would be no good one."""
    out = tmp_path / "out"
    with pytest.raises(RecoveryError) as error:
        run(
            pruned("graph"), FULL, validation=validation, out=out, learning_rate=1e30, warmup=0,
            evaluate_every=1 if validation else 3,
        )  # fmt: skip
    if validation:
        assert "the loss on the validation data is nan after step 2; the last" in str(error.value)
        assert checkpoints(out) == ["checkpoint-1"]
    else:
        assert "; no checkpoint was written" in str(error.value)
        assert checkpoints(out) == []


class Roots(nn.Module):
    """A finite loss whose gradient is not: the root of a weight that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean() + (self.weight * 0).abs().sqrt().sum()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    data = [{"x": torch.tensor([float(n)])} for n in range(8)]
    with pytest.raises(RecoveryError, match="weight is not finite after step 1; no checkpoint"):
        run(
            Roots(),
            FULL,
            data,
            steps=1,
            out=tmp_path / "out",
            loss_fn=lambda module, batch: module(batch["x"]),
            collate_fn=lambda rows: {"x": torch.stack([row["x"] for row in rows])},
        )
    assert not list((tmp_path / "out").rglob(TENSORS))


def test_a_checkpoint_of_another_module(tmp_path: Path) -> None:
    """Run options are the same, as a loss of one's own may differ; tensors tell it."""
    from fxprune.recover.trainer import RecoveryTrainer

    out = tmp_path / "out"
    run(pruned("shrunk"), FULL, out=out, steps=2)
    (last,) = (out / runs.CHECKPOINTS).iterdir()
    trainer = RecoveryTrainer.__new__(RecoveryTrainer)
    trainer._trained = lambda: dict(Perceptron().named_parameters())  # type: ignore[method-assign]
    with pytest.raises(RecoveryError, match="is of another module or method"):
        trainer._read(last)


def test_a_torn_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pruned("shrunk"), FULL, out=out, steps=2)
    (last,) = (out / runs.CHECKPOINTS).iterdir()
    content = (last / TENSORS).read_bytes()
    (last / TENSORS).write_bytes(content[: len(content) // 2])
    module = pruned("shrunk")
    with pytest.raises(RecoveryError, match=r"cannot be read .*: remove that checkpoint"):
        run(module, FULL, out=out, steps=2)
    (last / TENSORS).unlink()
    with pytest.raises(RecoveryError, match="cannot be read"):
        run(pruned("shrunk"), FULL, out=out, steps=2)


def test_batches_of_ones_own_count_as_ours_do() -> None:
    """The first token of a row is not predicted, whether a collator hides it or not."""
    rows = varied(8)
    own = run(pruned("graph"), METHODS["full"], rows, collate_fn=collate)
    assert curve(own) == curve(run(pruned("graph"), METHODS["full"], rows))
