"""What a budget can limit: one cost a file. A new one is a file here and its line below."""

from fxprune.select.budgets import kv_cache, latency, macs, params
from fxprune.select.budgets.cost import COSTS, Cost, Count, Setting, register_cost

for _cost in (params.Params(), macs.Macs(), kv_cache.KvCache(), latency.Latency()):
    register_cost(_cost)

__all__ = ["COSTS", "Cost", "Count", "Setting", "register_cost"]
