"""Everything there is to measure of one model, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxprune.data import text
from fxprune.data.text import Text
from fxprune.errors import CalibrationError
from fxprune.measure import cache, memory, report, speed
from fxprune.measure.continuations import Continuations, continuations
from fxprune.measure.perplexity import (
    Score,
    Window,
    bos_token,
    of_word,
    perplexity,
    windows,
)
from fxprune.measure.settings import Settings
from fxprune.measure.speed import Speed
from fxprune.measure.tasks import Tasks, TaskScore, run
from fxprune.progress import step
from fxprune.trace.digests import digest
from fxprune.trace.inputs import device_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on one text in windows of one length.

    Attributes:
        text: its name.
        length: tokens in a window.
        stride: see :func:`fxprune.measure.perplexity.windows`.
        bos: the token at the head of every window, if there is one.
        score: what was found.
        digest: of the tokens; models with one digest saw the same windows.
        word: perplexity of a word: of as many tokens as the tokenizer makes of one in this text.
    """

    text: str
    length: int
    stride: int | None
    bos: str | None
    score: Score
    digest: str
    word: float


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        model: facts about it, and the versions of the libraries that measured it.
        settings: how it was measured.
        parameters: numbers in its parameters, a tied tensor once.
        size: bytes of its tensors.
        kv_cache: bytes cached per token of one row, None where they cannot be told.
        kv_cache_how: how they were found, or why not.
        speeds: times and memory.
        memory_how: what the memory is.
        no_generation: why there are no times of generation, if so.
        perplexities: by text and length.
        tasks: by task and metric.
        continuations: by text.
        in_turns: whether the times are of rounds in which several models took turns.
    """

    model: dict[str, Any]
    settings: Settings
    parameters: int
    size: int
    kv_cache: int | None
    kv_cache_how: str
    speeds: tuple[Speed, ...] = ()
    memory_how: str = ""
    no_generation: str | None = None
    perplexities: tuple[Perplexity, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    continuations: tuple[Continuations, ...] = ()
    in_turns: bool = False

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    texts: Sequence[Text] = (),
    tasks: Tasks | None = None,
    settings: Settings | None = None,
    name: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure a model.

    Args:
        model: a causal language transformers model, dense or shrunk, or a GraphModule of one,
            called with ``input_ids=``. It is put into evaluation mode.
        tokenizer: of the model.
        config: of the original, for a GraphModule; says how long a text may be.
        texts: to measure perplexity on.
        tasks: from :func:`fxprune.measure.tasks.load`; None for none.
        settings: how to measure.
        name: to show.
        progress: show what runs.

    Raises:
        EvaluationError: a setting makes no sense.
        CalibrationError: a text is too short, windows are longer than the model takes, or the
            tokenizer has no BOS token and one is asked for.
    """
    settings = settings or Settings()
    settings.check()
    config = config or getattr(model, "config", None)
    model.eval()
    bos = bos_token(tokenizer, settings.bos)
    cut, prompts = _windows(model, tokenizer, config, texts, settings, bos)
    head = None if bos is None else str(tokenizer.convert_ids_to_tokens(bos))
    # First of all: memory that other measurements leave behind would hide what this one takes.
    speeds, why = _speeds(model, len(tokenizer), settings, progress)
    with step("cache", progress):
        cached, how = cache.bytes_per_token(model)
    perplexities = []
    rates = {each.name: text.per_word(tokenizer, each) for each in texts}
    for (text_name, length), each in cut.items():
        found = perplexity(model, each, batch_size=settings.batch_size, progress=progress)
        seen = _digest([window.ids for window in each])
        word = of_word(found.perplexity, rates[text_name])
        facts = (text_name, length, settings.stride, head, found, seen, word)
        perplexities.append(Perplexity(*facts))
    continued = [
        continuations(
            model,
            text_name,
            ids,
            settings.new,
            digest=_digest([ids]),
            batch_size=settings.batch_size,
            progress=progress,
        )
        for text_name, ids in prompts.items()
    ]
    scores: list[TaskScore] = []
    if tasks is not None and tasks.built:
        scores = run(
            model,
            tokenizer,
            config,
            tasks,
            limit=settings.limit,
            batch_size=settings.batch_size,
            progress=progress,
        )
    return Evaluation(
        model=_facts(model, name, tasks is not None),
        settings=settings,
        parameters=report.parameters(model),
        size=report.size(model),
        kv_cache=cached,
        kv_cache_how=how,
        speeds=tuple(speeds),
        memory_how=memory.meaning(device_of(model)) if speeds else "",
        no_generation=why,
        perplexities=tuple(perplexities),
        tasks=tuple(scores),
        continuations=tuple(continued),
    )


def _windows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None,
    texts: Sequence[Text],
    settings: Settings,
    bos: int | None,
) -> tuple[dict[tuple[str, int], list[Window]], dict[str, torch.Tensor]]:
    """All windows and prompts, before anything is measured: a short text is told at once."""
    most = None
    if config is not None:
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
    continues = bool(settings.continuations) and speed.why_not_generate(model) is None
    needed = {"windows of {}": max(settings.lengths)} if texts else {}
    if continues:
        needed["continuations of {}"] = settings.prompt + settings.new
    for what, tokens in needed.items():
        if most is not None and tokens > most:
            raise CalibrationError(f"{what.format(tokens)} tokens: the model takes {most} at most")
    cut: dict[tuple[str, int], list[Window]] = {}
    prompts: dict[str, torch.Tensor] = {}
    for each in texts:
        ids = text.joined(tokenizer, each)
        asked = [(length, settings.stride, settings.windows) for length in settings.lengths]
        asked += [(settings.prompt, None, settings.continuations)] if continues else []
        found = []
        for length, stride, limit in asked:
            try:
                found.append(windows(ids, length, stride=stride, bos=bos, limit=limit))
            except CalibrationError as error:
                raise CalibrationError(f"{each.name}: {error}") from error
        if continues:
            prompts[each.name] = torch.stack([window.ids for window in found.pop()])
        cut |= {(each.name, n): w for n, w in zip(settings.lengths, found, strict=True)}
    return cut, prompts


def _digest(ids: Sequence[torch.Tensor]) -> str:
    return digest((str(place), each) for place, each in enumerate(ids))


def _speeds(
    model: nn.Module, vocabulary: int, settings: Settings, progress: bool
) -> tuple[list[Speed], str | None]:
    why, before = speed.why_not_generate(model), memory.resident()
    if not settings.generation:
        return [], why or "not asked for"
    speeds: list[Speed] = []
    prompt, new, rounds = settings.prompt, settings.new, settings.rounds
    for batch in settings.batch_sizes:
        with step(f"timing, batch {batch}", progress):
            runs = [("forward", batch, prompt + new, 0)]
            runs += [("generate", batch, prompt, new)] if why is None else []
            speeds += [speed.measure(model, *run, rounds, before, vocabulary) for run in runs]
    return speeds, why


def _facts(model: nn.Module, name: str | None, tasks: bool) -> dict[str, Any]:
    from importlib.metadata import version

    import transformers

    parameter = next(model.parameters(), None)
    facts = {
        "name": name or type(model).__name__,
        "class": type(model).__name__,
        "dtype": "" if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "device": str(device_of(model)),
        "threads": torch.get_num_threads(),
        "fxprune": version("fxprune"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {**facts, "lm_eval": version("lm_eval")} if tasks else facts
