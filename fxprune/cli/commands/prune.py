"""``fxprune prune``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.commands.options import Model, check_parent, layer_ratio_of, numbers, shape_of
from fxprune.cli.recipe import Recipe
from fxprune.errors import CriterionError, DepthError, FxpruneError, RecoveryError

CRITERIA = "How units are scored: obs, taylor, taylor2, flap, wanda-sp, magnitude, random, ..."


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
    seed: Annotated[
        int, typer.Option(help="Seed of the calibration crops and of random scores.")
    ] = 0,
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
        layer_ratios=dict(layer_ratio_of(each) for each in layer_ratio or ()),
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
        calibration_lengths=None
        if calibration_length is None
        else numbers("--calibration-length", calibration_length),
        evaluation_samples=eval_samples,
        evaluation_length=eval_length,
        verify=verify,
        save_as=save_as,
        shape=shape_of(shape),
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
        raise RecoveryError(f"{model} is not a causal language model, which --recover needs here")
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


def _check_scores(given: Path | None, target: Path | None, out: Path) -> None:
    from fxprune.importance.scores import Scores

    if given is not None:
        Scores.load(given)  # refuses what is no such file
    check_parent(target)
    if target is not None and out.resolve() in target.resolve().parents:
        raise FxpruneError(
            f"{target} would be replaced along with {out}: save the scores elsewhere"
        )
