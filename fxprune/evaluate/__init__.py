"""Measure one model: perplexity, zero-shot tasks, what it costs to run."""

from fxprune.evaluate.evaluation import Evaluation, evaluate
from fxprune.evaluate.settings import Settings
from fxprune.evaluate.subject import open_subject
from fxprune.evaluate.tasks import TaskSpec

__all__ = ["Evaluation", "Settings", "TaskSpec", "evaluate", "open_subject"]
