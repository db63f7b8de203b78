"""Measure one model: perplexity, zero-shot tasks, what it costs to run."""

from fxprune.measure.evaluation import Evaluation, evaluate
from fxprune.measure.settings import Settings
from fxprune.measure.subject import open_subject
from fxprune.measure.tasks import TaskSpec

__all__ = ["Evaluation", "Settings", "TaskSpec", "evaluate", "open_subject"]
