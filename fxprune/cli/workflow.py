"""Load, prune, measure, save: what ``fxprune prune`` and ``fxprune demo`` have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from fxprune.errors import (
    CalibrationError,
    CheckpointError,
    CriterionError,
    ShrinkError,
)
from fxprune.files import write_text
from fxprune.progress import step

if TYPE_CHECKING:
    from rich.console import Console
    from torch import fx, nn

    from fxprune.config import PruneConfig
    from fxprune.data.text import Text
    from fxprune.hf.folder.weights import Weights
    from fxprune.hf.open.models import LoadedModel
    from fxprune.importance.scores import Scores
    from fxprune.measure.perplexity import Window
    from fxprune.measure.report import Measurement
    from fxprune.plan import Plan
    from fxprune.result import PruneResult

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
        opened_by: how to open it, in words.
        notes: what else there is to say.
    """

    before: Measurement
    after: Measurement
    caption: str
    result: PruneResult
    folder: Path
    opened_by: str
    notes: tuple[str, ...] = ()

    def show(self, console: Console) -> None:
        """Print the table of costs, how they were measured and what the oracle found."""
        from fxprune.measure.report import table

        console.print(table(self.before, self.after))
        plain: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
        console.print(self.caption, style="dim", **plain)
        for line in self.notes:
            console.print(line, **plain)
        if self.result.report is not None:
            console.print(f"proof: {self.result.report}", **plain)
        if self.result.latency is not None:
            console.print(str(self.result.latency), **plain)
        if self.result.compensation is not None:
            console.print(str(self.result.compensation), **plain)
        if self.result.surcharge is not None:
            console.print(str(self.result.surcharge), **plain)
        for line in limits(self.result.plan):
            console.print(line, **plain)

    def write_report(self, path: Path, **facts: Any) -> None:
        """Write both measurements as JSON, with facts about how they came about."""
        from fxprune.measure.report import as_json

        measured = self.caption.splitlines()
        if self.result.surcharge is not None:
            facts["target"] = self.result.surcharge.to_dict()
        if self.notes:
            facts["notes"] = list(self.notes)
        content = {**facts, **as_json(self.before, self.after), "measured": measured}
        write_text(path, json.dumps(content, indent=1) + "\n")


def texts(file: Path | None, evaluation: Path | None) -> tuple[Text, Text]:
    """Text to calibrate on and other text to measure on.

    Args:
        file: to calibrate on; its second half measures unless ``evaluation`` is given. None takes
            prose that comes with Python, and ``self`` what the model writes.
        evaluation: to measure on.

    Raises:
        CalibrationError: a file cannot be read, or both are one file.
    """
    from fxprune.data import text

    if file is not None and str(file) == "self" and not file.exists():
        return text.OWN, text.builtin()[1] if evaluation is None else text.read(evaluation)
    if file is not None and evaluation is not None and file.resolve() == evaluation.resolve():
        raise CalibrationError(f"{file} cannot both calibrate and measure; leave out the second")
    halves = text.builtin() if file is None else text.split(text.read(file))
    if evaluation is None:
        return halves
    return halves[0] if file is None else text.read(file), text.read(evaluation)


def own(loaded: LoadedModel, calibration: Text | None, file: Path | None) -> Text | None:
    """The text to calibrate on, or the model's own where the user gave none and it can write."""
    from fxprune.data.text import OWN
    from fxprune.data.written import writes

    if calibration is OWN and not writes(loaded.model):
        raise CalibrationError(f"{loaded.name} cannot write its own calibration text: give a file")
    bos = getattr(loaded.tokenizer, "bos_token_id", None)
    given = file is not None or calibration is None or bos is None
    return calibration if given or not writes(loaded.model) else OWN


def check_model(spec: str, config: PruneConfig, scored: bool = False) -> bool:
    """Look at a model's config, and fetch its weights, before they are loaded.

    Args:
        spec: the model, as it was typed.
        config: how it is to be pruned.
        scored: whether there are scores of an earlier run, in place of a criterion.

    Returns:
        Whether it is a language model, which text can calibrate and measure.

    Raises:
        ModelError: no such model, or it has no weights.
        CriterionError: the configuration needs calibration data, and this is no language model.
    """
    from fxprune.hf.folder.opened import config_of
    from fxprune.hf.open.architecture import is_causal, model_class

    found = config_of(spec)
    causal = is_causal(found)
    for option in [] if causal else needing_data(config, scored):
        raise CriterionError(
            f"{model_class(found).__name__} is not a causal language model, which {option} "
            "needs here; take magnitude or random, or calibrate in Python with fxprune.prune"
        )
    return causal


def needing_data(config: PruneConfig, scored: bool = False) -> list[str]:
    """What of a configuration needs calibration data where the model is no language model."""
    from fxprune.depth.named import needs_data

    of_units = None if scored else config.make_criterion(causal=False)
    criteria = (of_units, config.make_depth_criterion())
    options = [repr(each) for each in criteria if each is not None and needs_data(each)]
    return options + [each for each in (config.compensation,) if each not in ("auto", None)]


def run(
    loaded: LoadedModel,
    config: PruneConfig,
    folder: Path,
    *,
    calibration: Text | None,
    evaluation: Text | None,
    windows: tuple[int, int],
    reload: Callable[[], nn.Module],
    scores: Scores | None = None,
    save_scores: Path | None = None,
    save_as: str = "auto",
    progress: bool = True,
    source: Weights | None = None,
) -> Outcome:
    """Prune a loaded model, save it and measure it before and after.

    Args:
        loaded: the model; its weights are freed as they are sliced.
        config: how to prune.
        folder: where to save the pruned model.
        calibration: text for criteria that need some.
        evaluation: text for perplexity; None leaves that out.
        windows: how many windows of it at most, and tokens in each.
        reload: loads the original once more. It is timed in turns with the pruned model, which
            cannot be done while pruning frees the original.
        scores: those of an earlier run, instead of a criterion.
        save_scores: file for the scores, outside ``folder``.
        save_as: see :meth:`fxprune.PruneResult.save`.
        progress: show progress bars.
        source: where the weights are, of a model without, which is pruned in pieces.

    Raises:
        FxpruneError: whatever a stage refuses.
    """
    from fxprune.cli.pruned import pruned
    from fxprune.data.text import per_word
    from fxprune.measure import perplexity, report
    from fxprune.rewrite.history import pruned_first
    from fxprune.trace import trace
    from fxprune.trace.inputs import device_of, from_config

    if save_as == "transformers":
        check_shrinks(loaded.model, config)
    model, tokenizer = loaded.model, loaded.tokenizer
    device = torch.device("cpu") if source is not None else device_of(model)
    example = from_config(pruned_first(model), device)
    cut = windows_of(tokenizer, evaluation, windows)

    def measure(module: nn.Module, tokenizer: Any, weights: Weights | None) -> Measurement:
        found = None
        if cut is not None and evaluation is not None:
            run = module if weights is None else trace(module, (), example)
            found = perplexity.perplexity(run, cut, progress=progress, stream=weights).perplexity
            if config.tokens:
                found = perplexity.of_word(found, per_word(tokenizer, evaluation))
        macs = report.macs(module, (), report.resized(example, *MACS_AT))
        return report.Measurement(report.parameters(module), macs, report.size(module), found)

    # In pieces it is measured behind all that can be refused, or goes on after a kill.
    before = report.Measurement(0) if source is not None else measure(model, tokenizer, None)
    result = pruned(loaded, config, folder, calibration, scores, source, progress)
    if save_scores is not None:
        result.scores.save(save_scores)
    small, budget = result.graph_module, config.budget
    at = LATENCY_AT if budget is None or budget.latency is None else budget.shape
    with step("saving", progress):
        # That the config can say the sizes was tried before.
        opened = result.save(folder, save_as="graph" if save_as == "graph" else "auto")
    if source is not None:
        before = measure(model, tokenizer, source)
        outcome = Outcome(before, before, "", result, folder, opened)
        return _in_pieces(outcome, measure, source, _caption({}, None, cut, evaluation))
    if is_static(small):
        after = report.Measurement(report.parameters(small), size=report.size(small))
        caption = "static sizes: costs not compared"
        return Outcome(before, after, caption, result, folder, opened)
    if result.vocabulary is not None:
        cut = windows_of(result.tokenizer, evaluation, windows)
    after = measure(small, result.tokenizer, None)
    caption = _caption(example, at, cut, evaluation)
    notes = _of_tokens(result, calibration, evaluation)
    outcome = Outcome(before, after, caption, result, folder, opened, notes)
    if not room_for(before.size or 0):
        return outcome
    with step("timing", progress):
        inputs = report.resized(example, *at)
        both = (reload().to(device), small)
        times = report.latency([report.forward(module, (), inputs) for module in both])
    return _timed(outcome, *times)


def _in_pieces(
    outcome: Outcome,
    measure: Callable[..., Measurement],
    source: Weights,
    said: str,
) -> Outcome:
    """With the costs of what was saved, read from there."""
    from fxprune.hf.folder.in_pieces import without_weights
    from fxprune.hf.folder.weights import Weights

    folder, small = outcome.folder, outcome.result.graph_module
    try:
        saved = Weights(folder, device=source.device)
        after = measure(without_weights(saved).model, None, saved)
    except CheckpointError:  # it holds a graph
        from fxprune.measure import report

        after = report.Measurement(report.parameters(small), size=report.size(small))
    return replace(outcome, after=after, caption=f"{said}\nin pieces: not timed")


def windows_of(tokenizer: Any, text: Text | None, of: tuple[int, int]) -> list[Window] | None:
    """So many windows of a text at most, and tokens in each; None without one or a tokenizer."""
    if text is None or tokenizer is None:
        return None
    from fxprune.data.text import joined
    from fxprune.measure import perplexity

    return perplexity.windows(joined(tokenizer, text), of[1], limit=of[0])


def _of_tokens(result: PruneResult, *texts: Text | None) -> tuple[str, ...]:
    """What there is to say of the tokens that went."""
    if result.vocabulary is None:
        return ()
    lines = result.vocabulary.words(*(text for text in texts if text is not None))
    return *lines, "perplexity is that of a word: tokens are others"


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


def check_shrinks(model: nn.Module, config: PruneConfig) -> None:
    """Refuse what no transformers config can say, before any work is done.

    Raises:
        ShrinkError: it cannot, tried without weights on one unit of each group.
    """
    from torch import fx

    if isinstance(model, fx.GraphModule):
        raise ShrinkError(
            "this folder holds a graph, which can be saved as a graph alone: leave out --save-as"
        )
    if not config.width:
        return
    from fxprune.groups.dependency import discover
    from fxprune.hf.open import architecture
    from fxprune.hf.shrink.shrink import shrink
    from fxprune.plan import Plan
    from fxprune.trace import trace

    blank = architecture.build(cast(Any, model.config), architecture=type(model).__name__)
    graph = discover(trace(blank))
    kept = {
        group.name: tuple(range(1, group.size))
        for group in graph.groups
        if group.kind in config.kinds and group.size > 1
    }
    shrink(blank, Plan.of(graph, kept), traced=graph.traced, share=True)


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


def room_for(size: int, device: str = "cpu") -> bool:
    """Whether that many bytes fit into free memory with something to spare (if it can be told)."""
    from fxprune.hf.folder.in_pieces import free_memory

    free = free_memory(device)
    return free is None or 1.5 * size < free


def is_static(graph_module: fx.GraphModule) -> bool:
    """Whether the graph takes only inputs of the example's sizes."""
    from fxprune.trace.sizes import is_symbolic

    values = [n.meta.get("val") for n in graph_module.graph.nodes if n.op == "placeholder"]
    return not any(is_symbolic(size) for v in values for size in getattr(v, "shape", ()))


def _caption(
    example: Mapping[str, Any],
    at: tuple[int, int] | None,
    cut: Sequence[Window] | None,
    text: Text | None,
) -> str:
    from fxprune.measure.report import resized, shape_words

    words = " x ".join(map(str, MACS_AT))
    if example:
        words = shape_words(resized(example, *MACS_AT)).removesuffix(" tokens")
    said = [f"MACs: matrix products of one forward pass of {words} tokens"]
    if cut and text is not None:
        said.append(f"perplexity: {len(cut)} windows of {len(cut[0].ids)} tokens of {text.name}")
    if at is None:
        return "\n".join(said)
    shape = shape_words(resized(example, *at))
    said.append(f"latency: median forward pass of {shape}, both models in turns")
    return "\n".join(said)
