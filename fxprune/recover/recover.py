"""The verb: retrain a pruned model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.data.loss_function import compares
from fxprune.errors import RecoveryError
from fxprune.progress import step
from fxprune.recover import own_words, rates, runs, sharded
from fxprune.recover.arguments import training_arguments
from fxprune.recover.calls import LossFunction, check_causal
from fxprune.recover.data import Data, Reading, Rows, prepare, read
from fxprune.recover.history import History
from fxprune.recover.methods import FullTraining, LoRA, Method
from fxprune.recover.own import as_found
from fxprune.recover.settings import Training
from fxprune.trace.digests import digest, model_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fxprune.data.records import Records
    from fxprune.data.text import Text


@dataclass(frozen=True, eq=False)
class Recovery:
    """What :func:`recover` gives.

    Attributes:
        module: the retrained module: the one given, of the same kind, with adapters merged (or,
            with ``merge=False``, PEFT's model around it).
        history: losses step by step.
        step: whose weights these are: the last, or that of the best evaluation.
        trained: parameters that were trained.
        notes: data that were left out, and why, a line each.
        rates: learning rates that were tried first, to the validation loss after a few steps.
    """

    module: nn.Module
    history: History
    step: int
    trained: int
    notes: tuple[str, ...]
    rates: dict[float, float] = field(default_factory=dict)


def recover(
    module: nn.Module,
    data: Data,
    method: Method | None = None,
    *,
    training: Training | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    validation: float | Data = 0.05,
    evaluation: Sequence[Text] = (),
    drop_overlap: bool = False,
    bad_rows: str = "refuse",
    train_on_prompt: bool = False,
    rewrite: bool = False,
    loss_fn: LossFunction | None = None,
    collate_fn: Callable[[list[Any]], dict[str, Any]] | None = None,
    out: str | Path | None = None,
    merge: bool = True,
    device: str | None = None,
    progress: bool = False,
) -> Recovery:
    """Retrain a pruned model, in place.

    The loop is transformers' Trainer, so the same call works on a CPU, on a GPU and in many
    processes under ``accelerate launch`` or ``torchrun``. Adapters are PEFT's. What the module
    shares with the model that it was pruned from is copied first, so that one does not change.

    Args:
        module: what :func:`fxprune.rewrite` or :func:`fxprune.shrink` made; any other module that
            takes ``input_ids`` and gives logits; with ``loss_fn``, any module at all.
        data: a file of text, ``.jsonl`` or ``.json`` (a ``text`` in each row, or Alpaca's
            ``instruction``, ``input``, ``output``; or a conversation), ``datasets:NAME``, a
            :class:`Text`, token ids of shape (rows, length), or a sequence of examples of your own
            (see ``collate_fn``). ``self`` is text that the teacher writes: as many rows as are
            trained on, 512 at most.
        method: :class:`LoRA` (the default) or :class:`FullTraining`, with a teacher or without.
        training: steps, batches, learning rate and so on.
        tokenizer: of the model; needed for text.
        validation: the fraction of the documents that is kept to validate on; other data for that;
            or 0 for none.
        evaluation: texts that will be measured on; training data with some of them are refused.
        drop_overlap: leave such documents out instead.
        bad_rows: ``refuse`` or ``skip`` rows of a file that cannot be read.
        train_on_prompt: let instructions count in the loss too, not their responses alone.
        rewrite: let the teacher answer the rows of the data anew, and learn its answers. What it
            writes is kept beside ``out``, as ``OUT-written.jsonl``.
        loss_fn: for modules that are no language models: the mean loss of one batch. It is called
            with the module (possibly wrapped) and a batch.
        collate_fn: for examples of your own: makes a batch of a list of them. Needed with
            ``loss_fn``; default for rows of ``input_ids`` and ``labels``.
        out: folder of the run: its options, checkpoints, log and plot, and the adapter. The same
            call goes on where a killed one was, with the same result. None keeps nothing.
        merge: add adapters to the weights at the end.
        device: ``cpu`` to stay there where transformers would take a GPU.
        progress: show a bar.

    Returns:
        The module and the course of its losses.

    Raises:
        RecoveryError: an option or the data make no sense, the folder is of another run, or the
            loss stopped being finite; the message says what to do.
    """
    from fxprune.recover.loop import Loop

    method, training = method or LoRA(), training or Training()
    training.check()
    _check(module, method, loss_fn, collate_fn)
    reading = Reading(
        training.length,
        validation,
        evaluation,
        drop_overlap,
        bad_rows,
        train_on_prompt,
        training.seed,
    )
    data = _own_words(data, rewrite, method, training, tokenizer, reading, out, progress)
    rows = prepare(data, tokenizer, reading)
    rows, every = _evaluated(rows, training, not isinstance(validation, int | float))
    training = replace(training, evaluate_every=every)
    if training.learning_rate is None:
        training = replace(training, learning_rate=method.learning_rate)
    _check_rate(training, rows)
    with contextlib.ExitStack() as stack:
        folder = Path(out or stack.enter_context(tempfile.TemporaryDirectory()))
        begun = replace(training, learning_rate=method.learning_rate)
        begun = begun if training.learning_rate == rates.FIND else training
        arguments = training_arguments(folder / runs.CHECKPOINTS, begun, rows, device)
        if out is None and arguments.world_size > 1:
            raise RecoveryError("many processes share the folder of the run: give out=")
        first = arguments.process_index == 0
        with arguments.main_process_first(desc="noting what is asked"):
            if out is not None and first:
                runs.begin(folder, _asked(module, method, training, rows))
                runs.forget_partial(folder / runs.CHECKPOINTS)
        stack.enter_context(as_found(module))
        loop = Loop(module, method, training, rows, arguments, loss_fn, collate_fn)
        tried: dict[float, float] = {}
        try:
            if training.learning_rate == rates.FIND:
                with step("trying learning rates", progress):
                    tried = loop.find_rate(method.learning_rate, folder / rates.FILE)
            history = loop.run(progress)
        except BaseException:
            loop.abandon()
            raise
        if out is not None and first:
            history.write(folder)
            loop.save_adapter(folder)
        done = loop.finish(merge)
    return Recovery(done, history, loop.step, loop.trained, rows.notes, tried)


def _own_words(
    data: Data,
    rewrite: bool,
    method: Method,
    training: Training,
    tokenizer: PreTrainedTokenizerBase | None,
    reading: Reading,
    out: str | Path | None,
    progress: bool,
) -> Data:
    """The data as the teacher writes or rewrites it, if it is to."""
    writes = isinstance(data, str) and data == own_words.OWN
    teaching = method.distillation
    if not writes and not rewrite:
        if teaching is not None and not teaching.counts:
            raise RecoveryError(
                "a teacher of weight 0 that writes no data does nothing: leave it out"
            )
        return data
    if teaching is None or tokenizer is None:
        raise RecoveryError("a teacher writes this data, with its tokenizer: give both")
    if writes and training.steps is None:
        raise RecoveryError("data='self' is as long as the run: give steps=")

    def make() -> Records:
        options: dict[str, Any] = {"seed": training.seed, "progress": progress}
        if writes:
            count = (training.steps or 0) * training.batch_size
            return own_words.own_texts(
                teaching.teacher, tokenizer, count, training.length, **options
            )
        records = read(data, reading)
        return own_words.own_answers(
            teaching.teacher, tokenizer, records, training.length, **options
        )

    file = None if out is None else Path(out).with_name(f"{Path(out).name}-written.jsonl")
    return own_words.kept(file, make)


def _evaluated(rows: Rows, training: Training, whole: bool) -> tuple[Rows, int]:
    """The rows with as few to validate on as there is time for, and the steps between."""
    known = len(rows.validation)
    every, count = training.evaluations(len(rows.training), known, whole)
    if count == known:
        return rows, every
    chosen = [rows.validation[place * known // count] for place in range(count)]
    said = f"validated on {count} of {known} sequences, every {every} steps: a tenth of the time"
    return replace(rows, validation=chosen, notes=(*rows.notes, said)), every


def _check_rate(training: Training, rows: Rows) -> None:
    """Refuse to look for a learning rate with nothing to judge it by.

    Raises:
        RecoveryError: there is no validation data, or the weights are divided among processes.
    """
    if training.learning_rate != rates.FIND:
        return
    if not rows.validation:
        raise RecoveryError("learning rates are judged on validation data: keep some (validation=)")
    if sharded.is_sharded():
        raise RecoveryError("learning rates are not tried under FSDP: give learning_rate= a number")


def _check(module: nn.Module, method: Method, loss_fn: Any, collate_fn: Any) -> None:
    """Refuse what cannot work before data are read."""
    if not isinstance(method, LoRA | FullTraining):
        raise RecoveryError(f"no method of recovery: {method!r}; take LoRA() or FullTraining()")
    if any(parameter.is_meta for parameter in module.parameters()):
        raise RecoveryError(f"{type(module).__name__} is on meta: give it weights first")
    if not any(True for _ in module.parameters()):
        raise RecoveryError(f"{type(module).__name__} has no parameters to train")
    if loss_fn is None:
        check_causal(module)
    elif method.teacher is not None:
        raise RecoveryError("a teacher teaches tokens: leave out loss_fn, or put it in there")
    elif collate_fn is None:
        raise RecoveryError("loss_fn needs batches: say with collate_fn how to make them")
    elif compares(loss_fn):
        raise RecoveryError(
            "loss_fn is called with (model, batch): give one that calls the model and then this "
            "loss, such as lambda model, batch: loss(model(batch['x']), batch['y'])"
        )


def _asked(module: nn.Module, method: Method, training: Training, rows: Rows) -> dict[str, Any]:
    """All that decides what comes out of a run."""
    tensors = {
        f"{part} {place}{name}": value
        for part, examples in (("training", rows.training), ("validation", rows.validation))
        for place, example in enumerate(examples)
        for name, value in _told(example)
    }
    return {
        "module": model_digest(module),
        "method": _plain(method),
        "training": asdict(training),
        "data": digest(tensors.items()),
    }


def _plain(method: Method) -> dict[str, Any]:
    """A method in words and numbers."""
    plain = {name: value for name, value in vars(method).items() if name != "teacher"}
    plain["targets"] = list(plain["targets"]) if "targets" in plain else None
    how = method.distillation
    taught: dict[str, Any] | None = None
    if how is not None:
        taught = {
            "model": model_digest(how.teacher),
            "temperature": how.temperature,
            "weight": how.weight,
            "hidden": how.hidden,
        }
    return {"name": type(method).__name__, **plain, "teacher": taught}


def _told(example: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The numbers and texts of an example of any form, as far as they can be told."""
    if isinstance(example, str):
        example = list(example.encode())
    if isinstance(example, tuple | list) and not all(isinstance(x, int | float) for x in example):
        example = dict(enumerate(example))
    if isinstance(example, Mapping):
        for each, value in example.items():
            yield from _told(value, f"{name} {each}")
        return
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        yield name, torch.as_tensor(example)
