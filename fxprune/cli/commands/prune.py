"""``fxprune prune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxprune.cli.commands.fields import configuration, takes_config
from fxprune.cli.commands.options import Model, check_least, check_parent
from fxprune.errors import DepthError, FxpruneError, RecoveryError, VocabularyError

if TYPE_CHECKING:
    from fxprune.cli.chain import Chain
    from fxprune.config import PruneConfig
    from fxprune.importance.scores import Scores


@takes_config
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pruned model.")],
    given: Mapping[str, Any],
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON with the fields of fxprune.PruneConfig, or the report.json of an"
            " earlier run. Options that are typed come first."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text, or .jsonl of texts or conversations, to calibrate on; half of it measures,"
            " unless --eval-text is given. Without it, and with self, text that the model writes"
            " itself calibrates, if it can, and prose that comes with Python measures."
        ),
    ] = None,
    eval_text: Annotated[Path | None, typer.Option(help="Text for perplexity.")] = None,
    eval_samples: Annotated[int, typer.Option(help="Windows for perplexity.")] = 64,
    eval_length: Annotated[int, typer.Option(help="Tokens in each.")] = 128,
    scores: Annotated[
        Path | None, typer.Option(help="Instead of a criterion: scores that --save-scores wrote.")
    ] = None,
    save_scores: Annotated[
        Path | None, typer.Option(help="Write the scores here, to plan again without estimating.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Score blocks that are left again after each removal.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute, such as cuda.")] = "cpu",
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
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what pruning in pieces would take, and how long."),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="USER/NAME on the Hugging Face hub to upload the result to, in the end."),
    ] = None,
) -> None:
    """Prune a model, save it and show what it costs before and after."""
    from fxprune.hf.folder import checkpoint, hub

    config = configuration(_greedy(given) if greedy else given, recipe)
    _check_words(config, text, save_as)
    check_least("eval-samples", eval_samples, 1)
    check_least("eval-length", eval_length, 2)
    checkpoint.check_target(out)
    known = _check_scores(config, scores, save_scores, out)
    chain = None
    if recover_method is not None:
        chain = _chain(
            model, out, recover_method, recover_data, recover_steps, distill, config.seed
        )
        chain.check(text)
    from rich.console import Console

    from fxprune.cli import pieces, workflow
    from fxprune.cli.card import write_card
    from fxprune.cli.pruned import pruned
    from fxprune.data import processes
    from fxprune.hf.folder.in_pieces import without_weights
    from fxprune.hf.folder.opened import opened
    from fxprune.hf.open.load import check_device
    from fxprune.progress import step

    check_device(device)
    if dry_run:
        pieces.foretell(model, config, workflow.texts(text, eval_text)[0], device)
        return
    if push_to_hub is not None:
        hub.check_push(push_to_hub)
    calibration, evaluation = workflow.texts(text, eval_text)
    causal = workflow.check_model(model, config, scores is not None)
    if chain is not None and not causal:
        raise RecoveryError(f"{model} is not a causal language model, which --recover needs here")
    with processes.divided(device) as among:
        helps = among is not None and among.rank > 0
        device = device if among is None else among.device(device)
        source = pieces.source(model, device, config, chain is not None)
        with step(f"loading {model}", not helps):
            loaded = opened(model, device) if source is None else without_weights(source)
        drawn = calibration if causal or config.tokens else None
        drawn = drawn if source else workflow.own(loaded, drawn, text)
        if helps:
            # What the first process refuses, all do, in the same words.
            workflow.windows_of(
                loaded.tokenizer, evaluation if causal else None, (eval_samples, eval_length)
            )
            pruned(loaded, config, out, drawn, known)
            return
        outcome = workflow.run(
            loaded,
            config,
            out,
            calibration=drawn,
            evaluation=evaluation if causal else None,
            windows=(eval_samples, eval_length),
            reload=lambda: opened(model, device).model,
            scores=known,
            save_scores=save_scores,
            save_as=save_as,
            source=source,
        )
    outcome.write_report(
        out / "report.json",
        model=loaded.name,
        config=config.to_dict(),
        **({} if scores is None else {"scores": str(scores)}),
        criterion=outcome.result.plan.criterion,
    )
    about: dict[str, Any] = {"base": model, "config": config.to_dict(), "name": push_to_hub}
    write_card(outcome, **about)
    folder = out
    console = Console()
    outcome.show(console)
    console.print(f"saved in {out}; {outcome.opened_by}", markup=False, soft_wrap=True)
    if config.target not in (None, "transformers", "transformers-remote"):
        words = f"for {config.target}: fxprune convert {out} TARGET --for {config.target}"
        console.print(words, markup=False, soft_wrap=True)
    if chain is not None:
        recovered = chain.run(calibration, evaluation, eval_samples)
        recovered.show(console)
        folder = chain.folder
        write_card(outcome, **about, folder=folder, retrained=recovered.words)
        console.print(f"recovered: {folder}", markup=False, soft_wrap=True)
    if push_to_hub is not None:
        console.print(f"uploaded: {hub.push(folder, push_to_hub)}", markup=False, soft_wrap=True)
    outcome.result.state.end()


def _greedy(given: Mapping[str, Any]) -> Mapping[str, Any]:
    schedule = given.get("depth.schedule", "greedy")
    if schedule != "greedy":
        raise DepthError(f"--greedy and --schedule {schedule} are two schedules: give one")
    return {**given, "depth.schedule": schedule}


def _check_words(config: PruneConfig, text: Path | None, save_as: str) -> None:
    if config.tokens and (text is None or str(text) == "self"):
        raise VocabularyError("--vocabulary: tokens are chosen by text: give a file, --text")
    if save_as not in ("auto", "transformers", "graph"):
        raise FxpruneError(f"no save-as {save_as!r}: take auto, transformers or graph")


def _chain(model: str, out: Path, method: str, *options: Any) -> Chain:
    """Retraining behind it.

    Raises:
        RecoveryError: this is one of several processes.
    """
    from fxprune.data.processes import launched

    if launched() > 1:
        raise RecoveryError(
            "--recover trains in one process here: leave it out, and launch fxprune recover behind"
            " it"
        )
    from fxprune.cli.chain import Chain

    return Chain(model, out, method, *options)


def _check_scores(
    config: PruneConfig, given: Path | None, target: Path | None, out: Path
) -> Scores | None:
    """The scores of an earlier run, if they are given."""
    from fxprune.importance.scores import Scores

    if given is not None:
        config.check_scores()
    check_parent(target)
    if target is not None and out.resolve() in target.resolve().parents:
        raise FxpruneError(
            f"{target} would be replaced along with {out}: save the scores elsewhere"
        )
    return None if given is None else Scores.load(given)  # refuses what is no such file
