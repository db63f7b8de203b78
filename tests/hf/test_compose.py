"""Shrunk models compile and quantise as any other."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.docs.blocks import ROOT, blocks
from tests.hf import tiny
from tests.hf.folder.test_module_folder import halved

PAGE = ROOT / "docs" / "saving.md"


@pytest.fixture(scope="module")
def small() -> Any:
    """Every layer has other sizes than the config's defaults, and one has its own."""
    model = tiny.llama(num_hidden_layers=3)
    graph = fxprune.discover(fxprune.trace(model))
    return fxprune.shrink(model, halved(graph, ("mlp", "attention")))


def logits(model: Any, *shape: int) -> torch.Tensor:
    ids = torch.arange(3, 3 + shape[0] * shape[1]).view(shape)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def assert_close(quantised: Any, small: Any) -> None:
    """To a hundredth of the largest logit; but not equal, or nothing was quantised."""
    found, expected = logits(quantised, 2, 9), logits(small, 2, 9)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert 0 < error < 0.02
    ids = torch.tensor([[5, 3, 8]])
    written = quantised.generate(ids, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
    assert written.shape == (1, 7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(small: Any, backend: str) -> None:
    """What becomes of the graphs is not of our making, and generating code takes half a minute."""
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    compiled = torch.compile(small, backend=backend)
    for shape in ((2, 9), (3, 5)):
        torch.testing.assert_close(
            logits(compiled, *shape), logits(small, *shape), rtol=0, atol=1e-5
        )


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)
def test_dynamic_int8_of_torch(small: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(small), {nn.Linear})
    layer = quantised.model.layers[1].mlp.down_proj
    assert type(layer) is torch.ao.nn.quantized.dynamic.Linear
    assert layer.in_features == small.model.layers[1].mlp.down_proj.in_features < 40
    assert_close(quantised, small)


def test_the_page(small: Any) -> None:
    """The example of docs/saving.md, as it stands."""
    pytest.importorskip("torchao")
    (source,) = [block.source for block in blocks(PAGE) if "import Int8Weight" in block.source]
    names = {"small": copy.deepcopy(small)}
    exec(compile(source, PAGE.name, "exec"), names)
    assert_close(names["small"], small)
