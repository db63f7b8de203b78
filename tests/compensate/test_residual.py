"""Which sum a product's output ends in, in the traced and in the rewritten graph."""

from __future__ import annotations

import pytest

from fxprune.compensate.places import readers
from fxprune.compensate.residual import addition
from fxprune.groups.consumers import every_consumer
from tests.compensate.test_compensate import Case


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama", {"o_proj": 1, "down_proj": 1}),
        # Dropout comes back as a module, which is nothing in evaluation mode.
        ("gpt2", {"c_proj": 1}),
        ("opt", {"out_proj": 1, "fc2": 1}),
        ("t5", {"o": 1, "wo": 1}),
        ("bert", {"output.dense": 1}),
        # The second of parallel branches is added to the first, and to the stream.
        ("gpt_neox", {"dense_4h_to_h": 2}),
        ("falcon_grouped", {"dense_4h_to_h": 2}),
        ("gemma2", {}),  # norms on the branches
    ],
)
def test_sums(name: str, ends: dict[str, int]) -> None:
    case = Case(name, "mlp")
    calls = readers(case.traced, case.small)
    for consumer in every_consumer(case.graph):
        weight = consumer.site.tensor.removesuffix(".weight")
        if (here := calls.get(consumer.site.tensor)) is None:
            continue
        terms = next((count for end, count in ends.items() if weight.endswith(f".{end}")), 0)
        for product in (consumer.node, here):
            found = addition(product)
            assert (0 if found is None else len(found.others)) == terms
            assert found is None or all(other < product < found.node for other in found.others)
