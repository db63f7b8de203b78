"""What a model costs, exactly, from the graph alone: no weights, no forward pass."""

from fxprune.costs.error import CostError
from fxprune.costs.facts import facts
from fxprune.costs.kv_cache import KvCacheCount, kv_cache
from fxprune.costs.macs import MacCount, macs
from fxprune.costs.memory import memory_estimate

__all__ = [
    "CostError",
    "KvCacheCount",
    "MacCount",
    "facts",
    "kv_cache",
    "macs",
    "memory_estimate",
]
