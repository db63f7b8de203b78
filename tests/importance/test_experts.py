"""What routers do with the calibration tokens, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import fxprune
from fxprune.errors import CriterionError
from tests.llama import tiny_llama

IDS = torch.randint(3, 60, (6, 17), generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip


def mixtral(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, intermediate_size=16, num_local_experts=5)
    model = transformers.MixtralForCausalLM._from_config(config, **options).eval()
    return shaken(model)


def qwen() -> Any:
    """Its gates are not shares of one."""
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        **SIZES, intermediate_size=16, moe_intermediate_size=16, num_experts=5,
        shared_expert_intermediate_size=8, norm_topk_prob=False,
    )  # fmt: skip
    return shaken(transformers.Qwen2MoeForCausalLM(config).eval())


def phimoe() -> Any:
    """Its router takes the largest, and then the largest of the others."""
    torch.manual_seed(0)
    config = transformers.PhimoeConfig(**SIZES, intermediate_size=16, num_local_experts=5)
    return shaken(transformers.PhimoeForCausalLM(config).eval())


@torch.no_grad()
def shaken(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)
    return model


def llama4(**options: Any) -> Any:
    """Every expert is given all tokens, times a gate that is 0 where it was not chosen."""
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        **SIZES | options, head_dim=6, intermediate_size=16, intermediate_size_mlp=16,
        num_local_experts=5, moe_layers=[0, 1],
    )  # fmt: skip
    return shaken(transformers.Llama4ForCausalLM(config).eval())


def entered(module: Any, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What one mixture does whose gates scale what goes into its experts."""
    x = x.view(5, -1, x.shape[-1])
    counts, total = torch.zeros(2, 5).double()
    for t in torch.where(rows)[0].tolist():
        for expert in range(5):
            if x[expert, t].any():
                gate, up = (x[expert, t] @ module.gate_up_proj[expert]).chunk(2)
                counts[expert] += 1
                total[expert] += float(
                    ((module.act_fn(gate) * up) @ module.down_proj[expert]).norm()
                )
    return counts, total / counts.clamp(min=1), total


def by_hand(model: Any, mask: Tensor | None = None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each layer how often an expert is chosen, its REAP and its norms, in plain loops."""
    found = []

    def see(module: Any, args: tuple[Tensor, ...], output: Any) -> None:
        rows = torch.ones(IDS.numel()) if mask is None else mask.reshape(-1)
        if len(args) == 1:
            found.append(entered(module, *args, rows))
            return
        x, index, gates = args
        counts, total, norms = torch.zeros(3, 5).double()
        for t in range(len(x)):
            if not rows[t]:
                continue
            for place, expert in enumerate(index[t].tolist()):
                gate, up = (module.gate_up_proj[expert] @ x[t]).chunk(2)
                y = module.down_proj[expert] @ (module.act_fn(gate) * up)
                counts[expert] += 1
                total[expert] += float(gates[t, place] / gates[t].sum() * y.norm())
                norms[expert] += float(y.norm())
        found.append((counts, total / counts.clamp(min=1), norms))

    hooks = [
        module.register_forward_hook(see)
        for name, module in model.named_modules()
        if name.endswith(".experts")
    ]
    with torch.no_grad():
        model(IDS, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    return found


def llama4_of_two() -> Any:
    return llama4(num_experts_per_tok=2)


@pytest.mark.parametrize("make", [mixtral, qwen, phimoe, llama4, llama4_of_two])
@pytest.mark.parametrize("masked", [False, True])
def test_against_plain_loops(make: Any, masked: bool) -> None:
    model = make()
    mask = None
    data: dict[str, Tensor] = {"input_ids": IDS}
    inputs = {"input_ids": IDS}
    if masked:
        mask = torch.ones_like(IDS)
        mask[2, 11:] = 0
        data["attention_mask"] = mask
        inputs["attention_mask"] = torch.ones_like(IDS)
    graph = fxprune.discover(fxprune.trace(model, kwargs=inputs))
    names = ("frequency", "reap", "expert-norm")
    criteria = [fxprune.importance.by_name(name) for name in names]
    found = fxprune.estimate(model, graph, criteria, data, batch_size=4, kinds=["expert"])
    for layer, expected in enumerate(by_hand(model, mask)):
        place = "mlp" if hasattr(model.model.layers[layer], "mlp") else "feed_forward"
        for scores, each in zip(found, expected, strict=True):
            mine = scores[f"model.layers.{layer}.{place}:experts"].double()
            torch.testing.assert_close(mine, each, rtol=1e-4, atol=1e-6)


def test_batched_experts_give_the_same() -> None:
    found = []
    for name in ("grouped_mm", "batched_mm"):
        model = mixtral(experts_implementation=name)
        graph = fxprune.discover(fxprune.trace(model))
        found.append(fxprune.estimate(model, graph, fxprune.criteria.REAP(), IDS, kinds=["expert"]))
    for name, scores in found[0].items():
        torch.testing.assert_close(scores, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_reap_from_end_to_end(share: float) -> None:
    result = fxprune.prune(
        mixtral(), calibration=IDS, criterion="reap", kinds="expert", ranking="local",
        budget=fxprune.Budget(units=share),
    )  # fmt: skip
    assert result.report is not None
    small: Any = result.model
    assert small.config.num_local_experts == 5 - round(5 * share + 0.25)
    assert small.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 20)


def test_other_units_are_refused() -> None:
    with pytest.raises(CriterionError, match=r"mlp:units' \(mlp\) is not one of experts"):
        fxprune.prune(tiny_llama(), calibration=IDS, criterion="reap", kinds="mlp")


def test_the_default_scores_the_units_of_experts() -> None:
    result = fxprune.prune(mixtral(), calibration=IDS, verify=False)
    assert result.plan.criterion == repr(fxprune.OBS())
    assert any("experts" in name for name in result.plan.kept)
    assert {len(kept) % 8 for name, kept in result.plan.kept.items() if "experts" in name} == {0}


def test_the_default_scores_experts_by_reap_and_says_so() -> None:
    options: dict[str, Any] = {"ranking": "local", "budget": fxprune.Budget(units=0.4)}
    with pytest.warns(fxprune.FxpruneWarning, match=r"scored by REAP\(\): OBS.* cannot score"):
        result = fxprune.prune(mixtral(), calibration=IDS, kinds="expert", verify=False, **options)
    assert result.plan.criterion == repr(fxprune.criteria.REAP())
    both = {**options, "kinds": ("expert", "mlp")}
    with pytest.warns(fxprune.FxpruneWarning, match=r"scored by Taylor\(\): OBS.* cannot score"):
        result = fxprune.prune(mixtral(), calibration=IDS, verify=False, **both)
    assert result.plan.criterion == repr(fxprune.Taylor())
