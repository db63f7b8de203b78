"""How criteria rank the hidden units of experts, on a small mixture that is trained first.

``python -m benches.experts`` trains a small Mixtral for a minute on text of a random grammar, takes
half of the hidden units from all its experts by each criterion, and prints a line of JSON for each:
the loss on other text of that grammar, and how far the logits are off, ``||error|| / ||logits||``.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import fxprune
from fxprune.importance.named import by_name

if TYPE_CHECKING:
    import transformers

WORDS = 96
CRITERIA = ("random", "magnitude", "wanda-sp", "flap", "taylor", "taylor2", "obs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384])
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--damping", type=float, nargs="+", default=[0.5])
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    grammar = torch.randn(WORDS, WORDS, generator=generator).mul(2.5).softmax(-1)
    other = torch.randn(WORDS, WORDS, generator=generator).mul(2.5).softmax(-1)

    def text(count: int) -> Tensor:
        """Each word by the last one or by the one before it, as the parity of that says."""
        words = [torch.randint(0, WORDS, (count,), generator=generator) for _ in "ab"]
        while len(words) < 64:
            odd = (words[-1] % 2 == 1)[:, None]
            chances = torch.where(odd, grammar[words[-1]], other[words[-2]])
            words.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        return torch.stack(words, 1)

    model = trained(text, options.steps, options.seed)
    test = text(64)
    dense, loss = outcome(model, test)
    print(json.dumps({"criterion": "dense", "loss": round(loss, 4)}), flush=True)
    for tokens in options.tokens:
        data = text(tokens // 64)
        for name in options.criteria:
            for damping in [None, *options.damping]:
                small = pruned(model, data, name, options.share, damping)
                logits, loss = outcome(small, test)
                line: dict[str, Any] = {"criterion": name, "tokens": tokens, "refit": damping}
                error = float((logits - dense).norm() / dense.norm())
                line |= {"loss": round(loss, 4), "error": round(error, 4)}
                print(json.dumps(line), flush=True)


def trained(text: Any, steps: int, seed: int) -> transformers.MixtralForCausalLM:
    """A mixture of 8 experts, of which 2 are chosen."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.MixtralConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
        output_router_logits=True,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    for _ in range(steps):
        ids = text(32)
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.config.output_router_logits = False
    return model.eval()


def pruned(model: Any, data: Tensor, name: str, share: float, damping: float | None) -> Any:
    """The graph without a share of the hidden units of every mixture."""
    traced = fxprune.trace(model)
    graph = fxprune.discover(traced)
    scores = fxprune.estimate(model, graph, by_name(name), data, kinds=["mlp"], batch_size=32)
    plan = fxprune.select(
        graph, scores, budget=fxprune.Budget(units=share), ranking="local", kinds=["mlp"]
    )
    small = fxprune.rewrite(traced, plan)
    if damping is not None:
        fxprune.compensate(
            traced, small, plan, data, scope="pruned", damping=damping, temperature=False,
            batch_size=32,
        )  # fmt: skip
    return small


@torch.no_grad()
def outcome(model: Any, ids: Tensor) -> tuple[Tensor, float]:
    """The logits, and the loss of the next words."""
    logits = model(input_ids=ids).logits.float()
    flat = logits[:, :-1].flatten(0, 1)
    return logits, float(torch.nn.functional.cross_entropy(flat, ids[:, 1:].flatten()))


if __name__ == "__main__":
    main()
