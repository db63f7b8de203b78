"""Load, prune, measure, save: what ``fxprune prune`` and ``fxprune demo`` have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fxprune.errors import (
    CalibrationError,
    CheckpointError,
    CriterionError,
    ShrinkError,
)
from fxprune.files import write_text
from fxprune.progress import step

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import fx, nn
    from transformers import PreTrainedTokenizerBase

    from fxprune.cli.recipe import Recipe
    from fxprune.data.text import Text
    from fxprune.hf.open.models import LoadedModel
    from fxprune.measure.perplexity import Window
    from fxprune.measure.report import Measurement
    from fxprune.plan import Plan
    from fxprune.prune import PruneResult

MACS_AT, LATENCY_AT = (1, 64), (4, 128)  # (batch, tokens); 1 x 64 is what LLM-Pruner counts at


@dataclass(frozen=True, eq=False)
class Outcome:
    """A pruned model and what it costs.

    Attributes:
        before: costs of the original.
        after: costs of the pruned model.
        caption: how they were measured.
        result: what :func:`fxprune.prune` gave.
        folder: where it is saved.
        model: what is saved: the graph, or a transformers model on the same tensors.
        opened_by: how to open it, in words.
    """

    before: Measurement
    after: Measurement
    caption: str
    result: PruneResult
    folder: Path
    model: nn.Module
    opened_by: str

    def show(self, console: Console) -> None:
        """Print the table of costs, how they were measured and what the oracle found."""
        from fxprune.measure.report import table

        console.print(table(self.before, self.after))
        plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
        console.print(self.caption, style="dim", **plain)
        if self.result.report is not None:
            console.print(f"proof: {self.result.report}", **plain)
        if self.result.latency is not None:
            console.print(str(self.result.latency), **plain)
        if self.result.compensation is not None:
            console.print(str(self.result.compensation), **plain)
        for line in limits(self.result.plan):
            console.print(line, **plain)

    def write_report(self, path: Path, **facts: Any) -> None:
        """Write both measurements as JSON, with facts about how they came about."""
        from fxprune.measure.report import as_json

        measured = self.caption.splitlines()
        content = {**facts, **as_json(self.before, self.after), "measured": measured}
        write_text(path, json.dumps(content, indent=1) + "\n")


def texts(file: Path | None, evaluation: Path | None) -> tuple[Text, Text]:
    """Text to calibrate on and other text to measure on.

    Args:
        file: to calibrate on; its second half measures unless ``evaluation`` is given. None takes
            prose that comes with Python.
        evaluation: to measure on.

    Raises:
        CalibrationError: a file cannot be read, or both are one file.
    """
    from fxprune.data import text

    if file is not None and evaluation is not None and file.resolve() == evaluation.resolve():
        raise CalibrationError(f"{file} cannot both calibrate and measure; leave out the second")
    halves = text.builtin() if file is None else text.split(text.read(file))
    if evaluation is None:
        return halves
    return halves[0] if file is None else text.read(file), text.read(evaluation)


def check_model(spec: str, recipe: Recipe) -> bool:
    """Look at a model's config, and fetch its weights, before they are loaded.

    Returns:
        Whether it is a language model, which text can calibrate and measure.

    Raises:
        ModelError: no such model, or it has no weights.
        CriterionError: the criterion needs a language model and this is none.
    """
    from fxprune.hf.open.architecture import is_causal, model_class
    from fxprune.hf.open.models import fetch, load_config

    config = load_config(spec)
    causal = is_causal(config)
    for option in needing_data(recipe):
        if not causal:
            raise CriterionError(
                f"{model_class(config).__name__} is not a causal language model, which {option} "
                "needs here; take magnitude or random, or calibrate in Python with fxprune.prune"
            )
    fetch(spec)
    return causal


def needing_data(recipe: Recipe) -> list[str]:
    """The options of a recipe that need calibration data."""
    from fxprune.depth import DepthCriterion
    from fxprune.importance.collect import DATA

    criterion, of_blocks = recipe.make_criterion(), recipe.make_depth_criterion()
    options = [str(recipe.criterion)] if criterion and criterion.needs & DATA else []
    if isinstance(of_blocks, DepthCriterion) or (of_blocks and of_blocks.needs & DATA):
        options.append(repr(of_blocks))
    return options + ([] if recipe.compensate in ("auto", "none") else [recipe.compensate])


def run(
    loaded: LoadedModel,
    recipe: Recipe,
    folder: Path,
    *,
    calibration: Text | None,
    evaluation: Text | None,
    reload: Callable[[], nn.Module],
    save_scores: Path | None = None,
    progress: bool = True,
) -> Outcome:
    """Prune a loaded model, save it and measure it before and after.

    Args:
        loaded: the model; its weights are freed as they are sliced.
        recipe: what to do.
        folder: where to save the pruned model.
        calibration: text for criteria that need some.
        evaluation: text for perplexity; None leaves that out.
        reload: loads the original once more. It is timed in turns with the pruned model, which
            cannot be done while pruning frees the original.
        save_scores: file for the scores, outside ``folder``.
        progress: show progress bars.

    Raises:
        FxpruneError: whatever a stage refuses.
    """
    from fxprune.data import text
    from fxprune.importance.scores import Scores
    from fxprune.measure import report
    from fxprune.measure.perplexity import perplexity, windows
    from fxprune.prune import prune
    from fxprune.trace.inputs import device_of, from_config

    scores = None if recipe.scores is None else Scores.load(recipe.scores)
    check_shrinks(loaded.model, recipe)
    model, tokenizer, device = loaded.model, loaded.tokenizer, device_of(loaded.model)
    example = from_config(model)
    compensation = recipe.compensate
    if compensation == "auto":
        compensation = "none" if calibration is None or not recipe.width else "least-squares"
    crops = more = cut = None
    if calibration is not None and tokenizer is not None:
        mending = recipe.compensation_samples if compensation != "none" else 0
        most = getattr(loaded.config.get_text_config(), "max_position_embeddings", None)

        def draw(count: int, covariances: bool) -> list[torch.Tensor]:
            lengths = recipe.lengths(covariances)
            if recipe.calibration_lengths is None and most is not None:
                lengths = tuple(n for n in lengths if n <= max(most, lengths[0]))
            return text.mixed_crops(tokenizer, calibration, count, lengths, recipe.seed)

        crops = draw(recipe.samples, recipe.width and recipe.criterion == "obs")
        more = draw(mending, True) if mending else None
    if evaluation is not None and tokenizer is not None:
        tokens = text.joined(tokenizer, evaluation)
        cut = windows(tokens, recipe.evaluation_length, limit=recipe.evaluation_samples)

    def measure(module: nn.Module) -> Measurement:
        return report.Measurement(
            report.parameters(module),
            report.macs(module, (), report.resized(example, *MACS_AT)),
            report.size(module),
            None if cut is None else perplexity(module, cut, progress=progress).perplexity,
        )

    before = measure(model)
    result = prune(
        model,
        kwargs=example,
        criterion=recipe.make_criterion(),
        depth=recipe.depth(),
        depth_criterion=recipe.make_depth_criterion(),
        calibration=crops,
        scores=scores,
        steps=recipe.steps,
        compensation=None if compensation == "none" else cast(Any, compensation),
        compensation_scope=cast(Any, recipe.compensation_scope),
        compensation_data=more,
        verify=recipe.verify,
        consume=True,
        progress=progress,
        **recipe.goal(),
        **(recipe.selection() if recipe.width else {}),
    )
    if save_scores is not None:
        result.scores.save(save_scores)
    small = result.graph_module
    at = LATENCY_AT if recipe.latency is None else recipe.shape
    with step("saving", progress):
        stored = store(model, result, folder, tokenizer, recipe.save_as)
    tail = (result, folder, *stored)
    if is_static(small):
        after = report.Measurement(report.parameters(small), size=report.size(small))
        return Outcome(before, after, "static sizes: costs not compared", *tail)
    after = measure(small)
    outcome = Outcome(before, after, _caption(example, at, cut, evaluation), *tail)
    if not room_for(before.size or 0):
        return outcome
    with step("timing", progress):
        inputs = report.resized(example, *at)
        both = (reload().to(device), small)
        times = report.latency([report.forward(module, (), inputs) for module in both])
    return _timed(outcome, *times)


def _timed(outcome: Outcome, before: float, after: float) -> Outcome:
    """With the seconds of a forward pass of both models."""
    result = outcome.result
    if result.latency is not None:
        result = replace(result, latency=replace(result.latency, measured=after / before))
    return replace(
        outcome,
        before=replace(outcome.before, latency=before),
        after=replace(outcome.after, latency=after),
        result=result,
    )


def check_shrinks(model: nn.Module, recipe: Recipe) -> None:
    """Refuse what no transformers config can say, before any work is done.

    Raises:
        ShrinkError: it cannot, tried without weights on one unit of each group.
    """
    if recipe.save_as != "transformers" or not recipe.width:
        return
    from fxprune.groups.dependency import discover
    from fxprune.hf.open import architecture
    from fxprune.hf.shrink.shrink import shrink
    from fxprune.plan import Plan
    from fxprune.trace import trace

    config: Any = model.config
    blank = architecture.build(config, architecture=type(model).__name__)
    graph = discover(trace(blank))
    kept = {
        group.name: tuple(range(1, group.size))
        for group in graph.groups
        if group.kind in recipe.kinds and group.size > 1
    }
    shrink(blank, Plan.of(graph, kept), traced=graph.traced, share=True)


def store(
    model: nn.Module,
    result: PruneResult,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    save_as: str,
) -> tuple[nn.Module, str]:
    """Save what pruning gave: as a transformers model, or else as a graph.

    Args:
        model: the original; its weights may be gone.
        result: what pruning gave.
        folder: where to save.
        tokenizer: saved along.
        save_as: see :class:`Recipe`.

    Returns:
        What was saved, and how to open it, in words.
    """
    from fxprune.hf.folder import checkpoint
    from fxprune.hf.shrink.parts import uneven
    from fxprune.hf.shrink.shrink import shrink

    graph_module, plan = result.graph_module, result.plan
    opened, why = f"open it with fxprune.load({str(folder)!r})", ""
    if save_as != "graph" and hasattr(model, "config"):
        try:
            small = shrink(cast(Any, model), plan, graph_module, share=True)
            checkpoint.save(small, folder, plan=plan, tokenizer=tokenizer)
        except (ShrinkError, CheckpointError) as error:
            why = f" (not for transformers: {error})"
        else:
            remote = ", trust_remote_code=True" if uneven(small.config) else ""
            return small, f"{opened} or from_pretrained({str(folder)!r}{remote})"
    checkpoint.save(graph_module, folder, plan=plan, traced=result.traced, tokenizer=tokenizer)
    return graph_module, opened + why


def limits(plan: Plan) -> list[str]:
    """What bound the plan, and where, in few lines."""
    lines = [f"removed: {', '.join(plan.removed)}"] if plan.removed else []
    lines += [f"bound by: {plan.bound}"] if plan.bound else []
    alike: dict[str, list[str]] = {}
    for name, reason in plan.limits.items():
        alike.setdefault(reason, []).append(name)
    for reason, names in alike.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{reason}: {names[0]}{more}")
    return lines


def room_for(size: int) -> bool:
    """Whether that many bytes fit into free memory with something to spare (if it can be told)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return True
    return 1.5 * size < 1024 * free


def is_static(graph_module: fx.GraphModule) -> bool:
    """Whether the graph takes only inputs of the example's sizes."""
    from fxprune.trace.sizes import is_symbolic

    values = [n.meta.get("val") for n in graph_module.graph.nodes if n.op == "placeholder"]
    return not any(is_symbolic(size) for v in values for size in getattr(v, "shape", ()))


def _caption(
    example: Mapping[str, Any], at: tuple[int, int], cut: Sequence[Window] | None, text: Text | None
) -> str:
    from fxprune.measure.report import resized, shape_words

    said = [
        f"MACs: matrix products of one forward pass of {shape_words(resized(example, *MACS_AT))}"
    ]
    if cut and text is not None:
        said.append(f"perplexity: {len(cut)} windows of {len(cut[0].ids)} tokens of {text.name}")
    shape = shape_words(resized(example, *at))
    said.append(f"latency: median forward pass of {shape}, both models in turns")
    return "\n".join(said)
