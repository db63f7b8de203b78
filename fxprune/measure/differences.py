"""Whether two models differ on the same windows, questions or prompts, or by chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.measure.evaluation import Evaluation
from fxprune.measure.perplexity import ratio

RESAMPLES = 9999
MCNEMAR, BOOTSTRAP = "McNemar's test, exact", "paired bootstrap"


@dataclass(frozen=True)
class Difference:
    """A figure of one model beside that of another.

    Attributes:
        model: whose figure it is.
        other: the model that it is compared with.
        figure: ``perplexity``, ``repeated 4-grams`` or the metric of a task.
        of: the text or task.
        length: tokens in the windows; None where there are none.
        change: for a perplexity the ratio; for anything else the difference.
        stderr: standard error of the change.
        p: how probable so large a difference is if the models are equal, two-sided.
        test: how ``p`` was found: ``McNemar's test, exact`` (McNemar, Psychometrika 12, 1947) where
            every answer is right or wrong, else the paired bootstrap over windows, questions or
            prompts (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16).
    """

    model: str
    other: str
    figure: str
    of: str
    length: int | None
    change: float
    stderr: float
    p: float
    test: str


def differences(one: Evaluation, other: Evaluation) -> list[Difference]:
    """All figures that two models have on the same windows, questions and prompts.

    Nothing is said of texts that their tokenizers cut in different ways, of single windows or of
    losses that are not finite.
    """
    names = (one.model["name"], other.model["name"])
    found = []
    known = {(p.text, p.length, p.digest): p.score for p in other.perplexities}
    for p in one.perplexities:
        score = known.get((p.text, p.length, p.digest))
        times = None if score is None else ratio([p.score.losses], [score.losses])
        if score is not None and times is not None:
            chance = bootstrap(p.score.losses, score.losses)
            where = (*names, "perplexity", p.text, p.length)
            found.append(Difference(*where, *times, chance, BOOTSTRAP))
    asked = {(t.task, t.metric): t.answers for t in other.tasks}
    for t in one.tasks:
        answers = asked.get((t.task, t.metric), ())
        if len(answers) == len(t.answers) > 1:
            found.append(_difference(names, t.metric, t.task, t.answers, answers))
    continued = {(c.text, c.digest): c.repeated for c in other.continuations}
    for c in one.continuations:
        repeated = continued.get((c.text, c.digest), ())
        if len(repeated) == len(c.repeated) > 1:
            found.append(_difference(names, "repeated 4-grams", c.text, c.repeated, repeated))
    return found


def _difference(
    names: tuple[str, str], figure: str, of: str, one: Sequence[float], other: Sequence[float]
) -> Difference:
    apart = [a - b for a, b in zip(one, other, strict=True)]
    mean, stderr = statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
    exact = {*one, *other} <= {0.0, 1.0}
    p = mcnemar(one, other) if exact else bootstrap(one, other)
    return Difference(*names, figure, of, None, mean, stderr, p, MCNEMAR if exact else BOOTSTRAP)


def mcnemar(one: Sequence[float], other: Sequence[float]) -> float:
    """The exact p-value of McNemar's test: of the questions that one model alone has right.

    Args:
        one: 1 for each right answer and 0 for each wrong one.
        other: of the other model, to the same questions.
    """
    from scipy.stats import binomtest

    gained, lost = (
        sum(a > b for a, b in zip(x, y, strict=True)) for x, y in ((one, other), (other, one))
    )
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def bootstrap(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p-value of the mean difference of pairs, by the bootstrap; seeded.

    Twice the share of resampled means on the other side of 0, the smallest 2 / 10,000.
    """
    import numpy as np
    from scipy import stats

    apart = np.subtract(one, other, dtype=np.float64)
    if not apart.any():
        return 1.0
    if not np.ptp(apart):
        return 2 / (RESAMPLES + 1)
    means = stats.bootstrap(
        (apart,), np.mean, n_resamples=RESAMPLES, batch=100, method="percentile", rng=0
    ).bootstrap_distribution
    least = min((means <= 0).sum(), (means >= 0).sum())
    return min(1.0, 2 * (int(least) + 1) / (RESAMPLES + 1))
