"""Several models in one table: the dense, the pruned, the recovered one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fxprune.measure.continuations import GRAMS
from fxprune.measure.differences import BOOTSTRAP, MCNEMAR, Difference, differences
from fxprune.measure.evaluation import Evaluation, Perplexity
from fxprune.measure.output import CONTINUED, NONE, Section
from fxprune.measure.report import scaled

Rows = list[tuple[str, ...]]


def as_json(found: Sequence[Evaluation]) -> dict[str, Any]:
    """All models, and how the figures of each differ from the first model's, as plain values."""
    from dataclasses import asdict

    return {
        "models": [each.as_json() for each in found],
        "differences": [asdict(d) for each in found[1:] for d in differences(each, found[0])],
    }


def sections(found: Sequence[Evaluation]) -> list[Section]:
    """A column for each model; a table that would be empty is left out.

    Every figure of the second model and those after it has beside it how it differs from the
    first model's, and how probable so large a difference is by chance.
    """
    first = found[0]
    apart = {
        (d.model, d.figure, d.of, d.length): d
        for each in found[1:]
        for d in differences(each, first)
    }
    made = [
        _section(found, "Size", "", _sizes(found)),
        _section(found, "Speed", _speed_note(found), _speeds(found)),
        _section(found, "Perplexity", _perplexity_note(found), _perplexities(found, apart)),
        _section(found, "Continuations", CONTINUED, _continued(found, apart)),
        _section(found, "Tasks", "", _tasks(found, apart)),
    ]
    tests = sorted({d.test for d in apart.values()}, reverse=True)
    if tests and (told := [section for section in made if section.rows]):
        last = told[-1]
        words = {BOOTSTRAP: f"{BOOTSTRAP} over windows, prompts or questions", MCNEMAR: MCNEMAR}
        said = f"p: of so large a difference from {first.model['name']} by chance, two-sided; "
        note = said + ", ".join(words[test] for test in tests)
        told[-1] = Section(last.title, last.header, last.rows, _joined(last.note, note))
        return told
    return [section for section in made if section.rows]


def _section(found: Sequence[Evaluation], title: str, note: str, rows: Rows) -> Section:
    header = ("", *(each.model["name"] for each in found))
    return Section(title, header, [row for row in rows if set(row[1:]) != {NONE}], note)


def _sizes(found: Sequence[Evaluation]) -> Rows:
    names = {"parameters": "parameters", "bytes": "size", "KV-cache bytes per token": "kv_cache"}
    return [
        (label, *(_counted(getattr(e, name), getattr(found[0], name)) for e in found))
        for label, name in names.items()
    ]


def _counted(number: int | None, first: int | None) -> str:
    if number is None:
        return NONE
    changed = f" ({number / first - 1:+.1%})" if first and number != first else ""
    return f"{number:,}{changed}"


def _speeds(found: Sequence[Evaluation]) -> Rows:
    def speed(each: Evaluation, run: tuple[Any, ...]) -> Any:
        return next((s for s in each.speeds if (s.kind, s.batch, s.prompt, s.new) == run), None)

    def rate(each: Evaluation, run: tuple[Any, ...]) -> str:
        own, first = speed(each, run), speed(found[0], run)
        if own is None:
            return NONE
        times = own.tokens_per_second / first.tokens_per_second if first else None
        return f"{own.tokens_per_second:.1f}" + (
            f" ({times:.2f} x)" if times is not None and each is not found[0] else ""
        )

    def peak(each: Evaluation, run: tuple[Any, ...]) -> str:
        own = speed(each, run)
        return NONE if own is None or own.peak_memory is None else f"{scaled(own.peak_memory)}B"

    runs = dict.fromkeys((s.kind, s.batch, s.prompt, s.new) for e in found for s in e.speeds)
    rows: Rows = []
    for run in runs:
        kind, batch, prompt, new = run
        size = f"{kind}, {batch} x {prompt}" + (f" + {new}" if new else "")
        rows.append((f"{size}: tokens/s", *(rate(each, run) for each in found)))
        rows.append((f"{size}: peak memory", *(peak(each, run) for each in found)))
    return rows


def _speed_note(found: Sequence[Evaluation]) -> str:
    order = "in turns" if found[0].in_turns else "one model after the other"
    notes = [f"median of {found[0].settings.rounds}, {order}", f"memory: {found[0].memory_how}"]
    notes = notes if found[0].speeds else []
    for each in found:
        if each.no_generation:
            notes.append(f"{each.model['name']}: no generation, {each.no_generation}")
    return "; ".join(notes)


def _perplexities(found: Sequence[Evaluation], apart: dict[Any, Difference]) -> Rows:
    def cell(each: Evaluation, text: str, length: int) -> str:
        own = next((p for p in each.perplexities if (p.text, p.length) == (text, length)), None)
        if own is None:
            return NONE
        said = _spread(own.score.perplexity, own.score.stderr, 3)
        change = apart.get((each.model["name"], "perplexity", text, length))
        return said + ("" if change is None else f" ({change.change:.3f} x, {_chance(change.p)})")

    return [
        (f"{text} @ {length}", *(cell(each, text, length) for each in found))
        for text, length in dict.fromkeys((p.text, p.length) for e in found for p in e.perplexities)
    ] + _of_words(found)


def _of_words(found: Sequence[Evaluation]) -> Rows:
    """Perplexities of words, where the tokens are others."""
    of = [{(p.text, p.length): p for p in each.perplexities} for each in found]
    return [
        (f"{text} @ {length}, per word", *(_word(each.get((text, length))) for each in of))
        for text, length in of[0]
        if len({each[text, length].digest for each in of if (text, length) in each}) > 1
    ]


def _word(own: Perplexity | None) -> str:
    return NONE if own is None else f"{own.word:.4g}"


def _perplexity_note(found: Sequence[Evaluation]) -> str:
    first = found[0]
    seen = {(p.text, p.length): p.digest for p in first.perplexities}
    others = [
        each.model["name"]
        for each in found[1:]
        if any(seen.get((p.text, p.length)) != p.digest for p in each.perplexities)
    ]
    heads = {p.bos or "none" for e in found for p in e.perplexities}
    said = f"per token; @: tokens in a window; BOS: {', '.join(sorted(heads))}"
    if not others:
        return said
    return (
        f"{said}; the tokenizer of {', '.join(others)} cuts the texts into other tokens than that "
        f"of {first.model['name']}: compare perplexities per word"
    )


def _continued(found: Sequence[Evaluation], apart: dict[Any, Difference]) -> Rows:
    def cell(each: Evaluation, text: str, n: int) -> str:
        own = next((c for c in each.continuations if c.text == text), None)
        if own is None:
            return NONE
        if n in GRAMS:
            return f"{own.distinct[n]:.3f}"
        change = apart.get((each.model["name"], "repeated 4-grams", text, None))
        mean = f"{statistics.fmean(own.repeated):.3f}"
        return mean if change is None else f"{mean} ({change.change:+.3f}, {_chance(change.p)})"

    return [
        (f"{text}: {what}", *(cell(each, text, n) for each in found))
        for text in dict.fromkeys(c.text for e in found for c in e.continuations)
        for n, what in ((0, "repeated 4-grams"), *((n, f"distinct-{n}") for n in GRAMS))
    ]


def _tasks(found: Sequence[Evaluation], apart: dict[Any, Difference]) -> Rows:
    def cell(each: Evaluation, task: str, metric: str) -> str:
        own = next((t for t in each.tasks if (t.task, t.metric) == (task, metric)), None)
        if own is None:
            return NONE
        change = apart.get((each.model["name"], metric, task, None))
        said = _spread(own.value, own.stderr, 4)
        return said if change is None else f"{said} ({change.change:+.4f}, {_chance(change.p)})"

    return [
        (f"{task}, {metric}, n = {n}", *(cell(each, task, metric) for each in found))
        for task, metric, n in dict.fromkeys(
            (t.task, t.metric, t.n) for e in found for t in e.tasks
        )
    ]


def _spread(value: float, stderr: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if stderr is None else f" ± {stderr:.{digits}f}")


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
