"""Stage 7: what is left of the consumers makes up for what was removed, by forward passes only."""

from fxprune.compensate.compensate import compensate
from fxprune.compensate.report import Compensated, CompensationReport

__all__ = ["Compensated", "CompensationReport", "compensate"]
