"""Run many tasks, count what came of them, and show failures made small."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import multiprocessing
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.fuzz.reduce import reduced
from tests.fuzz.tasks import Failure, Result, Task, families, run_task, short, task_of


def tasks(seed: int, family: str | None, only: int | None = None) -> Iterator[Task]:
    """The tasks of a run, without end; one, if it is to be replayed."""
    among = families(family)
    indices = itertools.count() if only is None else (only,)
    return (task_of(index, seed, among) for index in indices)


def run(
    work: Iterator[Task],
    plans: int,
    jobs: int = 1,
    console: Console | None = None,
    shown: int = 5,
) -> Result:
    """Run tasks until enough plans were tried, and print what came of them.

    Args:
        work: the tasks. Those without anything to prune count for no plan.
        plans: how many plans to try, at least.
        jobs: processes.
        console: where to print; nothing is printed without one.
        shown: so many different failures are made small and shown.
    """
    total = Result()
    with _progress(console) as progress:
        bar = progress.add_task("plans", total=plans)
        for result in _results(work, jobs):
            total.add(result)
            words = f"{len(total.failures)} failures"
            progress.update(bar, completed=total.plans.total(), description=words)
            if console is not None and not console.is_terminal:
                console.print(summary(total), soft_wrap=True)
            if total.plans.total() >= plans:
                break
    if console is not None:
        console.print(table(total))
        for failure in different(total.failures)[:shown]:
            console.rule(f"{failure.outcome}", style="red")
            console.print(f"task {failure.task}\nplan {failure.spec}", soft_wrap=True)
            console.print(_made_small(failure), markup=False, highlight=False, soft_wrap=True)
    return total


def _made_small(failure: Failure) -> str:
    try:
        return reduced(failure)
    except Exception as error:  # then the task's index must do
        return f"it could not be made smaller: {type(error).__name__}: {error}"


def _results(work: Iterator[Task], jobs: int) -> Iterator[Result]:
    """The results in the order of the tasks, whatever the number of processes."""
    if jobs == 1:
        yield from map(run_task, work)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending = collections.deque(
            pool.submit(run_task, task) for task in itertools.islice(work, 3 * jobs)
        )
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(run_task, task) for task in itertools.islice(work, 1))


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
