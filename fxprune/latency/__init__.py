"""Glue beside ``prune``: how long a model takes on this machine, by the sizes of its groups."""

from fxprune.latency.measure import measure_latency
from fxprune.latency.outcome import LatencyReport
from fxprune.select.latency import LatencyCurve, LatencyTable

__all__ = ["LatencyCurve", "LatencyReport", "LatencyTable", "measure_latency"]
