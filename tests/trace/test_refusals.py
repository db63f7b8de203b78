"""Models that cannot be pruned as they are, and the way out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import TraceError
from fxprune.trace import refusals
from tests.hf import tiny

X = torch.randn(3, 8)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


class Linear8bitLt(nn.Linear):
    """By the name of the class of bitsandbytes."""


class QuantLinear(nn.Module):
    """GPTQ's and AWQ's form: codes, zero points and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))


class Packed(nn.Module):
    """Codes under a name of no library's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 8).to(dtype), requires_grad=False)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.script(plain())
    return module


def traced_by_jit() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.trace(plain(), X)
    return module


def dynamic() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.ao.quantization.quantize_dynamic(plain())
    return module


def flagged(**flags: Any) -> nn.Module:
    model = tiny.llama()
    for name, value in flags.items():
        setattr(model, name, value)
    return model


def configured() -> nn.Module:
    model = tiny.llama()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.DataParallel(plain()), "wrapped in DataParallel: .* model.module"),
        (
            lambda: torch.compile(plain(), backend="eager"),
            r"compiled by torch.compile: .* model\._orig_mod",
        ),
        (
            lambda: nn.Sequential(plain(), torch.compile(plain(), backend="eager")),
            r"Sequential.1 is compiled by torch.compile: .* model\.1\._orig_mod",
        ),
        (scripted, "scripted or traced by torch.jit: prune the nn.Module that it was made of"),
        (traced_by_jit, "scripted or traced by torch.jit"),
        (lambda: nn.Sequential(nn.Linear(8, 8), scripted()), "Sequential.1 is scripted"),
        (dynamic, r"Sequential.0 is quantised \(torch.ao.nn.quantized.dynamic"),
        (lambda: nn.Sequential(Linear8bitLt(8, 4)), r"0 is quantised \(.*Linear8bitLt\)"),
        (lambda: nn.Sequential(plain(), QuantLinear()), r"1 is quantised \(.*QuantLinear"),
        (lambda: Packed(torch.uint8), r"Packed is quantised \(weight is torch.uint8\)"),
        (lambda: Packed(torch.float8_e4m3fn), r"Packed is quantised \(weight is torch.float8"),
        (lambda: flagged(is_quantized=True), r"is quantised \(by transformers\): .*dequantize\("),
        (
            lambda: flagged(is_quantized=True, quantization_method="bitsandbytes"),
            r"LlamaForCausalLM is quantised \(bitsandbytes\)",
        ),
        (configured, r"quantization_config.*del model.config.quantization_config"),
        (lambda: nn.Linear, r"Linear is a class: give a model of it, Linear\(...\)"),
        (lambda: plain().state_dict(), "OrderedDict is not a torch.nn.Module"),
    ],
)
def test_refused_by_name_with_the_way_out(make: Any, message: str) -> None:
    model = make()
    for refuse in (
        lambda: fxprune.trace(model, X),
        lambda: fxprune.prune(model, X, pruning_ratio=0.1, criterion=fxprune.Magnitude()),
    ):
        with pytest.raises(TraceError, match=message) as caught:
            refuse()
        assert len(str(caught.value).splitlines()) == 1


def test_a_name_is_not_traced() -> None:
    """``fxprune.prune`` takes one, of a model that it runs piece by piece."""
    model: Any = "gpt2"
    with pytest.raises(TraceError, match="'gpt2' is a name: load the model first"):
        fxprune.trace(model, X)


def test_a_function_transform_is_refused_at_its_line() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.vmap(self.inner)(x) + x.sum()

    with pytest.raises(TraceError, match=r"calls torch.vmap .*test_refusals.py:.*write the axis"):
        fxprune.trace(Mapped(), X)


def test_wrapped_for_training_in_parallel(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        with pytest.raises(TraceError, match=r"DistributedDataParallel: .* model\.module"):
            fxprune.trace(nn.parallel.DistributedDataParallel(plain()), X)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        sharded = plain()
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(TraceError, match=r"is sharded by FSDP: .* full_state_dict=True"):
            refusals.check(sharded)
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_like_these_and_is_none() -> None:
    class Table(nn.Module):
        """Whole numbers that are no weights, and one that is a weight of ids."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("index", torch.arange(8, dtype=torch.int32))
            self.register_buffer("weight", torch.arange(8))

    module = plain()
    module.compile(backend="eager")  # in place: the module is what it was
    for model in (plain(), Table(), module, flagged(is_quantized=False), tiny.llama()):
        refusals.check(model)
    assert fxprune.trace(module, X)
    refusals.check(fxprune.trace(plain(), X).graph_module)


def test_torch_does_not_print_its_graph(capfd: pytest.CaptureFixture[str]) -> None:
    """``torch.export`` writes everything it has to standard error where values decide."""

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return y if (y > 0).any() else x

    with pytest.raises(TraceError, match="cannot be exported at"):
        fxprune.trace(Chooses(), torch.randn(2, 8))
    assert capfd.readouterr() == ("", "")
