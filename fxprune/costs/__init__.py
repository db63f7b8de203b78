"""What a model costs, exactly, from the graph alone: no weights, no forward pass."""

from fxprune.costs.active import active_parameters
from fxprune.costs.facts import facts
from fxprune.costs.kv_cache import KvCacheCount, kv_cache
from fxprune.costs.macs import MacCount, macs
from fxprune.errors import CostError

__all__ = [
    "CostError",
    "KvCacheCount",
    "MacCount",
    "active_parameters",
    "facts",
    "kv_cache",
    "macs",
]
