"""A model, or what became of it, as one HTML page that needs nothing else."""

from fxprune.inspect.page.page import write, write_blank
from fxprune.inspect.page.runs import Runs, read_runs

__all__ = ["Runs", "read_runs", "write", "write_blank"]
