"""The command line: ``fxprune inspect``, ``prune``, ``recover``, ``compare``, ``eval``, ``demo``.

Nothing heavy is imported here, so that ``--help`` and a mistyped option answer at once.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.recipe import Recipe
from fxprune.errors import (
    CalibrationError,
    CriterionError,
    DepthError,
    FxpruneError,
    FxpruneWarning,
    RecoveryError,
    SelectionError,
)
from fxprune.files import check_writable, why_not_written
from fxprune.recover.methods import ALL_LINEAR, Distillation, LoRA
from fxprune.recover.settings import Training

CRITERIA = "How units are scored: obs, taylor, taylor2, flap, wanda-sp, magnitude, random, ..."
LOOKED_AT = "A local folder (a pruned one too), a hub name, a config.json, or smollm2."
MODEL = "A local folder, a hub name, a config.json, or smollm2."
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Structured pruning of language models and other networks.",
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL, show_default=False)]


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=LOOKED_AT, show_default=False)],
    dot: Annotated[Path | None, typer.Option(help="Write a Graphviz picture here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all facts here.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with pictures here; of a pruned model before and after."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="For --html: scores that prune --save-scores wrote, for a heat map."),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead: why a group, or what a tensor or module belongs to, is coupled.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For --explain: only the path to this tensor or module."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Only this layer, group by group.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Group by group.")] = False,
    legal: Annotated[
        bool, typer.Option("--legal", help="Which sizes a config, devices and kernels can take.")
    ] = False,
) -> None:
    """Show what can be pruned and what cannot, and why. Needs no weights."""
    for file in (dot, json_file, html):
        _check_parent(file)
    from fxprune.cli import inspect as command

    wanted = command.Wanted(dot, json_file, html, scores, explain, to, layer, every, legal)
    wanted.check()
    command.inspect_spec(model, wanted)


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model.")],
    ratio: Annotated[
        float | None,
        typer.Option(help="Fraction of all parameters to remove; 0.2 unless another goal is set."),
    ] = None,
    macs: Annotated[
        float | None, typer.Option(help="MACs that may stay: a fraction, or a number above 1.")
    ] = None,
    kv_cache: Annotated[
        float | None, typer.Option(help="Numbers cached per token that may stay, likewise.")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            help="Time of a forward pass that may stay: a fraction, or milliseconds above 1. How"
            " sizes of groups change it is measured on this device first, once."
        ),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="BATCHxTOKENS of the pass that --macs and --latency are about.")
    ] = "1x64",
    units: Annotated[
        float | None, typer.Option(help="Instead: fraction of units to remove from every group.")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help=CRITERIA, show_default=str(Recipe.criterion))
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Instead of a criterion: scores that --save-scores wrote.")
    ] = None,
    save_scores: Annotated[
        Path | None, typer.Option(help="Write the scores here, to plan again without estimating.")
    ] = None,
    compensate: Annotated[
        str,
        typer.Option(
            help="none, bias or least-squares: mend what stays, by forward passes."
            " auto: least-squares for a language model."
        ),
    ] = Recipe.compensate,
    compensation_scope: Annotated[
        str | None,
        typer.Option(
            help="pruned, or all: least squares for products that read no pruned unit too.",
            show_default="all",
        ),
    ] = Recipe.compensation_scope,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text or .jsonl to calibrate on; half of it measures, unless --eval-text is given."
            " Without it, prose that comes with Python."
        ),
    ] = None,
    eval_text: Annotated[Path | None, typer.Option(help="Text for perplexity.")] = None,
    kinds: Annotated[str, typer.Option(help="Kinds of groups, with commas.")] = "mlp,attention",
    ranking: Annotated[
        str, typer.Option(help="global: all units together; local: an equal share of each group.")
    ] = "global",
    multiple_of: Annotated[
        int, typer.Option(help="Groups that lose units keep a multiple of this many.")
    ] = 1,
    layer_ratio: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=FRACTION of units that go there, repeatable; 0 protects."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps to the goal, with new scores before each.")] = 1,
    remove_blocks: Annotated[
        int | None,
        typer.Option(help="Blocks (or what --unit says) to remove whole, before anything else."),
    ] = None,
    remove_ratio: Annotated[
        float | None, typer.Option(help="Instead: fraction of all parameters to remove so.")
    ] = None,
    unit: Annotated[
        str, typer.Option(help="block, attention, mlp, or branch for either of the two.")
    ] = Recipe.unit,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Score what is left again after each removal.")
    ] = False,
    schedule: Annotated[
        str | None,
        typer.Option(help="one-shot, greedy, run (neighbours), alternate, first (those stay)."),
    ] = None,
    depth_criterion: Annotated[
        str | None,
        typer.Option(help="ppl, block-influence, angular-distance, magnitude, taylor, ..."),
    ] = None,
    keep_first: Annotated[
        int | None,
        typer.Option(help="Leave the first layers alone.", show_default="0; 4 for blocks"),
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(help="Leave the last layers alone.", show_default="0; 2 for blocks"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of crops and random scores.")] = 0,
    calibration_samples: Annotated[
        int | None,
        typer.Option(help="Crops of text that the criterion sees: 10, or 128 for obs."),
    ] = None,
    compensation_samples: Annotated[
        int, typer.Option(help="Crops that compensation sees.")
    ] = Recipe.compensation_samples,
    calibration_length: Annotated[
        str | None,
        typer.Option(
            help="Tokens in each; several with commas share the tokens.",
            show_default="128, for obs and compensation 128,1024",
        ),
    ] = None,
    eval_samples: Annotated[int, typer.Option(help="Windows for perplexity.")] = 64,
    eval_length: Annotated[int, typer.Option(help="Tokens in each.")] = 128,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
    verify: Annotated[bool, typer.Option(help="Prove the result against the original.")] = True,
    recover_method: Annotated[
        str | None,
        typer.Option(
            "--recover", help="Retrain the result: lora or full, as fxprune recover; see there."
        ),
    ] = None,
    recover_data: Annotated[
        str | None, typer.Option(help="To train on.", show_default="what calibrates")
    ] = None,
    recover_steps: Annotated[int, typer.Option(help="Steps of 8 x 128 tokens.")] = 100,
    distill: Annotated[
        bool, typer.Option(help="Learn from the original as well, in --recover.")
    ] = True,
    save_as: Annotated[
        str,
        typer.Option(
            help="transformers: a checkpoint of its class, with generate; graph: of any model, for"
            " fxprune.load; auto: the first, where its config can say the sizes."
        ),
    ] = Recipe.save_as,
) -> None:
    """Prune a model, save it and show what it costs before and after."""
    from fxprune.hf.folder import checkpoint

    if criterion is not None and scores is not None:
        raise CriterionError("give either --criterion or --scores, which has one already")
    if greedy and schedule not in (None, "greedy"):
        raise DepthError(f"--greedy and --schedule {schedule} are two schedules: give one")
    goals = (macs, kv_cache, latency, units, remove_blocks, remove_ratio)
    others = schedule == "alternate" or any(goal is not None for goal in goals)
    ratio = Recipe.ratio if ratio is None and not others else ratio
    if criterion is None and scores is None and any(x is not None for x in (ratio, *goals[:4])):
        criterion = Recipe.criterion
    recipe = Recipe(
        ratio=ratio,
        macs=macs,
        kv_cache=kv_cache,
        latency=latency,
        units=units,
        criterion=criterion,
        scores=None if scores is None else str(scores),
        compensate=compensate,
        compensation_scope=compensation_scope,
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        ranking=ranking,
        multiple_of=multiple_of,
        layer_ratios=dict(_layer_ratio(each) for each in layer_ratio or ()),
        steps=steps,
        seed=seed,
        remove=remove_blocks,
        remove_ratio=remove_ratio,
        unit=unit,
        schedule="greedy" if greedy else schedule,
        depth_criterion=depth_criterion,
        keep_first=keep_first,
        keep_last=keep_last,
        calibration_samples=calibration_samples,
        compensation_samples=compensation_samples,
        calibration_lengths=None if calibration_length is None else _lengths(calibration_length),
        evaluation_samples=eval_samples,
        evaluation_length=eval_length,
        verify=verify,
        save_as=save_as,
        shape=_shape(shape),
    )
    recipe.check()
    checkpoint.check_target(out)
    _check_scores(scores, save_scores, out)
    chain = None
    if recover_method is not None:
        from fxprune.cli.chain import Chain

        chain = Chain(model, out, recover_method, recover_data, recover_steps, distill, seed)
        chain.check()
    from rich.console import Console

    from fxprune.cli import workflow
    from fxprune.hf.open.load import check_device, load
    from fxprune.progress import step

    check_device(device)
    calibration, evaluation = workflow.texts(text, eval_text)
    causal = workflow.check_model(model, recipe)
    if chain is not None and not causal:
        raise RecoveryError(f"{model} is no causal language model, which --recover needs here")
    with step(f"loading {model}"):
        loaded = load(model, device)
    outcome = workflow.run(
        loaded,
        recipe,
        out,
        calibration=calibration if causal else None,
        evaluation=evaluation if causal else None,
        reload=lambda: load(model, device).model,
        save_scores=save_scores,
    )
    plan = outcome.result.plan
    outcome.write_report(
        out / "report.json", model=loaded.name, recipe=asdict(recipe), criterion=plan.criterion
    )
    console = Console()
    outcome.show(console)
    console.print(f"saved in {out}; {outcome.opened_by}", markup=False, soft_wrap=True)
    if chain is not None:
        chain.run(calibration, evaluation, eval_samples).show(console)
        console.print(f"recovered: {chain.folder}", markup=False, soft_wrap=True)


@app.command("apply")
def apply_plan(
    plan: Annotated[Path, typer.Argument(help="File of a plan.", show_default=False)],
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder of safetensors, or smollm2.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
) -> None:
    """Prune a checkpoint by a plan, tensor by tensor: it need not fit into memory."""
    from fxprune.hf.folder.apply import apply
    from fxprune.hf.open.models import fetch
    from fxprune.plan import Plan

    read = Plan.load(plan)
    apply(read, fetch(source), target, progress=True)
    print(f"saved in {target}; open it with fxprune.load({str(target)!r}) or from_pretrained")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a pruned graph.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
) -> None:
    """Make a pruned graph a checkpoint of transformers."""
    from fxprune.hf.folder.convert import convert as run_convert

    run_convert(source, target)
    print(f"saved in {target}; open it with fxprune.load({str(target)!r}) or from_pretrained")


@app.command()
def compare(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the results; continued if begun.")],
    criteria: Annotated[
        str, typer.Option(help="Names with commas: taylor, flap, magnitude, ...")
    ] = "random,magnitude,taylor",
    ratios: Annotated[str, typer.Option(help="Fractions of all parameters to remove.")] = "0.2",
    text: Annotated[
        str | None,
        typer.Option(
            help="Calibration: text, .jsonl, token ids in .npy or .safetensors, or datasets:NAME."
            " Without it, prose that comes with Python."
        ),
    ] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Text for perplexity, repeatable; else half of --text."),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens in the windows for perplexity.")] = "128",
    windows: Annotated[
        str, typer.Option(help="Windows per text, one number or one per length; 0: all.")
    ] = "64",
    seeds: Annotated[int, typer.Option(help="Draws of calibration crops.")] = 1,
    samples: Annotated[str, typer.Option(help="Crops that criteria see.")] = "10",
    length: Annotated[str, typer.Option(help="Tokens in a crop.")] = "128",
    ranking: Annotated[str, typer.Option(help="local, global.")] = "local",
    normalise: Annotated[
        str | None, typer.Option(help="kind, group, standardise, none; else the criterion's own.")
    ] = None,
    cost_aware: Annotated[
        bool | None, typer.Option(help="Rank by score per parameter; else the criterion's own.")
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option(help="One set of kinds, with commas; repeatable.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean, max, prod, last.")] = None,
    compensate: Annotated[str, typer.Option(help="none, bias, least-squares.")] = "none",
    compensate_samples: Annotated[
        int | None, typer.Option(help="Crops that compensation sees; else as many as criteria.")
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Add rows with the dependency ignored.")
    ] = False,
    keep_first: Annotated[int, typer.Option(help="Leave the first layers alone.")] = 0,
    keep_last: Annotated[int, typer.Option(help="Leave the last layers alone.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; else the checkpoint's.")
    ] = None,
) -> None:
    """Prune one model in many ways and compare perplexities: options with commas are a table."""
    from fxprune.cli.compare import compare as run_comparison

    done = run_comparison(
        model,
        criteria,
        ratios,
        text,
        evals or (),
        out=out,
        lengths=lengths,
        windows=windows,
        seeds=seeds,
        samples=samples,
        length=length,
        ranking=ranking,
        normalise=normalise,
        cost_aware=cost_aware,
        kinds=kinds or ("mlp,attention",),
        aggregate=aggregate,
        compensate=compensate,
        compensate_samples=compensate_samples,
        ablation=ablation,
        keep_first=keep_first,
        keep_last=keep_last,
        device=device,
        dtype=dtype,
    )
    print((done.folder / "results.md").read_text(encoding="utf-8"), end="")
    print(f"{done.measured} of {len(done.results)} results are new; all files are in {done.folder}")


@app.command()
def recover(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A pruned model's folder; also any folder, hub name, or smollm2.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="To train on: text, .jsonl or .json (a text in each row, or Alpaca's"
            " instruction, input, output), or datasets:NAME."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder of the run: model, adapter, log, checkpoints; goes on if begun."),
    ],
    method: Annotated[str, typer.Option(help="lora, or full: all parameters.")] = "lora",
    teacher: Annotated[
        str | None, typer.Option(help="Learn from this model as well: the original, usually.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of teacher and student.")] = (
        Distillation.temperature
    ),
    teacher_weight: Annotated[float, typer.Option(help="How much of the loss it is.")] = (
        Distillation.weight
    ),
    hidden_weight: Annotated[float, typer.Option(help="Of hidden states beside the loss.")] = (
        Distillation.hidden
    ),
    rank: Annotated[int, typer.Option(help="Of LoRA.")] = LoRA.rank,
    alpha: Annotated[float, typer.Option(help="Of LoRA.")] = LoRA.alpha,
    dropout: Annotated[float, typer.Option(help="Of LoRA.")] = LoRA.dropout,
    targets: Annotated[
        str, typer.Option(help="Layers that LoRA adapts: all-linear, or names with commas.")
    ] = ALL_LINEAR,
    reinitialise: Annotated[
        bool, typer.Option("--reinitialise", help="Full training from scratch, to compare.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps.", show_default="--epochs")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = Training.epochs,
    batch_size: Annotated[
        int, typer.Option(help="Sequences per step, on all devices together.")
    ] = Training.batch_size,
    micro_batch_size: Annotated[
        int | None, typer.Option(help="Sequences per pass and device.", show_default="4 or less")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens in a sequence.")] = Training.length,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest.", show_default="3e-4 for lora, else 1e-4")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant.")] = (
        Training.schedule
    ),
    warmup: Annotated[float, typer.Option(help="Fraction of the steps.")] = Training.warmup,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = Training.weight_decay,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: bfloat16 on a GPU that has it.")
    ] = Training.precision,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints, with validation.", show_default="a tenth"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a better one.")
    ] = None,
    keep_best: Annotated[bool, typer.Option(help="End with the best evaluation's weights.")] = True,
    validation: Annotated[
        str, typer.Option(help="Fraction of the documents to validate on, or a file for that.")
    ] = "0.05",
    eval_text: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Text for perplexity before and after; repeatable."),
    ] = None,
    eval_samples: Annotated[int, typer.Option(help="Windows of 128 tokens per text.")] = 64,
    drop_overlap: Annotated[
        bool,
        typer.Option(help="Leave out, not refuse, training documents with text of --eval."),
    ] = False,
    bad_rows: Annotated[
        str, typer.Option(help="refuse, or skip: rows of --data that cannot be read.")
    ] = "refuse",
    train_on_prompt: Annotated[
        bool, typer.Option(help="Let instructions count too, not their responses alone.")
    ] = False,
    merge: Annotated[
        bool, typer.Option(help="Save the merged model, not LoRA's adapter alone.")
    ] = True,
    dtype: Annotated[
        str | None,
        typer.Option(help="Train in float32, bfloat16; the model is saved in its own."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, to leave a GPU alone.", show_default="a GPU if any")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data order, dropout and adapters.")] = 0,
) -> None:
    """Retrain a pruned model: LoRA or all parameters, from text or from a teacher.

    Many devices: accelerate launch -m fxprune recover ..., with the same options.
    """
    from rich.console import Console

    from fxprune.cli.recover import Teaching, named_method, recover_spec, validation_data
    from fxprune.data.text import read

    done = recover_spec(
        model,
        data,
        out,
        method=named_method(
            method,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets,
            reinitialise=reinitialise,
        ),
        teaching=Teaching(teacher, temperature, teacher_weight, hidden_weight),
        training=Training(
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            length=length,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            evaluate_every=evaluate_every,
            patience=patience,
            keep_best=keep_best,
            seed=seed,
        ),
        evaluation=[read(file) for file in eval_text or ()],
        windows=eval_samples,
        dtype=dtype,
        device=device,
        merge=merge,
        validation=validation_data(validation),
        drop_overlap=drop_overlap,
        bad_rows=bad_rows,
        train_on_prompt=train_on_prompt,
    )
    if done is None:
        return
    console = Console()
    done.show(console)
    console.print(done.where(), markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A local folder (save_pretrained or fxprune), a hub name, or smollm2.",
            show_default=False,
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Text or .jsonl for perplexity; repeatable.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks of lm-eval with commas, repeatable: NAME, or NAME=FILE.jsonl to ask what"
            " is in a file, in the columns of the task."
        ),
    ] = None,
    length: Annotated[
        str, typer.Option(help="Tokens in a window, BOS included; several with commas.")
    ] = "128",
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the beginnings of windows; else they do not overlap."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows per text at most; 0: all.")] = 0,
    bos: Annotated[
        str,
        typer.Option(
            help="BOS at the head of every window: window, none; auto: if the tokenizer"
            " puts it before a text by itself."
        ),
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Only the first questions of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; else as the task says.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per pass, for perplexity and tasks.")] = 4,
    generation: Annotated[
        bool, typer.Option(help="Measure latency, tokens/s and peak memory.")
    ] = True,
    batch_sizes: Annotated[str, typer.Option(help="Rows to time with, with commas.")] = "1",
    prompt: Annotated[int, typer.Option(help="Tokens in, to time.")] = 12,
    new: Annotated[int, typer.Option(help="Tokens out, to time.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds to take the median of.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all facts here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; else the checkpoint's.")
    ] = None,
) -> None:
    """Measure a model: perplexity, zero-shot tasks, speed, memory, KV-cache."""
    for file in (json_file, markdown):
        _check_parent(file)
    numbers = (_numbers("--length", length), _numbers("--batch-sizes", batch_sizes))
    from rich.console import Console

    from fxprune.cli.evaluate import evaluate_spec
    from fxprune.measure.output import show
    from fxprune.measure.settings import Settings

    found = evaluate_spec(
        model,
        text or (),
        tasks or (),
        settings=Settings(
            lengths=numbers[0],
            stride=stride,
            windows=windows or None,
            bos=bos,
            limit=limit,
            batch_size=batch_size,
            generation=generation,
            batch_sizes=numbers[1],
            prompt=prompt,
            new=new,
            rounds=rounds,
        ),
        num_fewshot=num_fewshot,
        device=device,
        dtype=dtype,
        json_file=json_file,
        markdown_file=markdown,
    )
    show(found, Console())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("fxprune-demo"),
    ratio: Annotated[float, typer.Option(help="Fraction of all parameters to remove.")] = 0.2,
    eval_text: Annotated[Path | None, typer.Option(help="Text for perplexity.")] = None,
    recover_too: Annotated[
        bool, typer.Option("--recover", help="Retrain it for a few steps.")
    ] = False,
) -> None:
    """Prune a real language model (SmolLM2-135M, fetched once) and show the result."""
    from fxprune.cli.demo import demo as run_demo
    from fxprune.data.text import read

    evaluation = None if eval_text is None else read(eval_text)
    run_demo(out, ratio, evaluation=evaluation, recover=recover_too)


def _lengths(given: str) -> tuple[int, ...]:
    return _numbers("--calibration-length", given)


def _shape(given: str) -> tuple[int, int]:
    batch, _, length = given.partition("x")
    if not (batch.isdecimal() and length.isdecimal()):
        raise SelectionError(f"--shape {given}: give BATCHxTOKENS, such as 1x128")
    return int(batch), int(length)


def _numbers(option: str, given: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in given.split(","))
    except ValueError:
        raise CalibrationError(f"{option} {given!r}: numbers with commas") from None


def _layer_ratio(given: str) -> tuple[str, float]:
    pattern, _, fraction = given.rpartition("=")
    with contextlib.suppress(ValueError):
        if pattern:
            return pattern, float(fraction)
    raise SelectionError(f"--layer-ratio {given!r}: write PATTERN=FRACTION")


def _check_scores(given: Path | None, target: Path | None, out: Path) -> None:
    from fxprune.importance.scores import Scores

    if given is not None:
        Scores.load(given)  # refuses what is no such file
    _check_parent(target)
    if target is not None and out.resolve() in target.resolve().parents:
        raise FxpruneError(
            f"{target} would be replaced along with {out}: save the scores elsewhere"
        )


def _check_parent(file: Path | None) -> None:
    if file is None:
        return
    if not file.resolve().parent.is_dir():
        raise FxpruneError(f"no folder {file.resolve().parent} to write {file.name} into")
    if file.is_dir():
        raise FxpruneError(f"{file} is a folder, and a file is to be written there")
    check_writable(file)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Our own warnings as one line; other libraries' are not for the user of a command."""
    if issubclass(category, FxpruneWarning):
        print(f"warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line; errors the user can mend are one line and exit status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app()
        except Exception as error:
            said = str(error) if isinstance(error, FxpruneError) else why_not_written(error)
            if not said:
                raise
            file = getattr(error, "filename", None)
            print(f"error: {file}: {said}" if file else f"error: {said}", file=sys.stderr)
            sys.exit(2)
