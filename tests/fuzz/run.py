"""Run many tasks, count what came of them, and show failures made small."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import multiprocessing
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz.reduce import reduced
from tests.fuzz.tasks import PLANS_EACH, Failure, Result, Task, families, run_task, short, task_of


def tasks(plans: int, seed: int, family: str | None, only: int | None = None) -> list[Task]:
    """The tasks of a run; one, if it is to be replayed."""
    among = families(family)
    indices = range(math.ceil(plans / PLANS_EACH)) if only is None else (only,)
    return [task_of(index, seed, among) for index in indices]


def run(work: list[Task], jobs: int = 1, console: Console | None = None, shown: int = 5) -> Result:
    """Run tasks and print what came of them.

    Args:
        work: the tasks.
        jobs: processes.
        console: where to print; nothing is printed without one.
        shown: so many different failures are made small and shown.
    """
    total = Result()
    with _progress(console) as progress:
        bar = progress.add_task("plans", total=len(work) * PLANS_EACH)
        for result in _results(work, jobs):
            total.add(result)
            bad = sum(n for o, n in total.plans.items() if o.failed)
            progress.update(
                bar,
                advance=PLANS_EACH,
                description=f"{bad} plans, {len(total.failures)} failures in all",
            )
    if console is not None:
        console.print(table(total))
        for failure in different(total.failures)[:shown]:
            console.rule(f"{failure.outcome}", style="red")
            console.print(f"task {failure.task}\nplan {failure.spec}", soft_wrap=True)
            console.print(reduced(failure), markup=False, highlight=False, soft_wrap=True)
    return total


def _results(work: list[Task], jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(run_task, work)
        return
    # Tasks of one family go to one process, which captures a model of the zoo once.
    ordered = sorted(work, key=lambda task: task.family)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(run_task, ordered, chunksize=max(1, min(8, len(work) // (4 * jobs))))


def different(failures: Iterable[Failure]) -> list[Failure]:
    """One failure of each sort."""
    found: dict[tuple[object, ...], Failure] = {}
    for failure in failures:
        found.setdefault((short(failure.outcome), failure.spec is None), failure)
    return list(found.values())


def table(total: Result) -> Table:
    """The counts, worst first."""
    made = Table("", "what came of it", "where", "how many")
    rank = ("wrong", "raw", "refused", "skipped", "right")
    for title, counts in (
        ("plans", total.plans),
        ("transformers classes", total.shrinks),
        ("captured graphs", total.captures),
    ):
        for outcome in sorted(counts, key=lambda o: (rank.index(o.verdict), -counts[o])):
            where = ": ".join(x for x in (outcome.what, outcome.detail) if x)
            style = "red" if outcome.failed else None
            made.add_row(title, outcome.verdict, where, str(counts[outcome]), style=style)
            title = ""
    return made


def summary(total: Result) -> str:
    """One line: ``10000 plans: 9000 right, ...``."""
    words = []
    for verdict in ("right", "refused", "skipped", "wrong", "raw"):
        words.append(f"{sum(n for o, n in total.plans.items() if o.verdict == verdict)} {verdict}")
    others = itertools.chain(total.captures.items(), total.shrinks.items())
    bad = sum(n for o, n in others if o.failed)
    return f"{total.plans.total()} plans: {', '.join(words)}; elsewhere {bad} failures"


def _progress(console: Console | None) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=console is None)
