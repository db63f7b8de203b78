"""A CNN and BERT in ONNX Runtime on a CPU, dense and with a fifth of their parameters removed.

``pytest benches/bench_onnx.py -s``; needs the packages ``onnx``, ``onnxscript`` and
``onnxruntime``. Random weights in the shapes of ResNet-50 and BERT-base, an equal share of each
group by magnitude: values make no difference to speed. Both files run in turns. The ideal is the
ratio of multiply-accumulates.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from benches.sizes import pick
from fxprune.measure import report

BATCHES = (1, 8)
ROUNDS, WARM_UP = pick(quick=(1, 1), cpu=(9, 2))
PICTURE, LENGTH = pick(quick=64, cpu=224), pick(quick=16, cpu=128)
LAYERS = pick(quick=1, cpu=12)


def resnet() -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    small: dict[str, Any] = {"depths": [1, 1, 1, 1]}
    config = ResNetConfig(num_labels=1000, **pick(quick=small, cpu={}))
    pictures = torch.randn(2, 3, PICTURE, PICTURE)
    return ResNetForImageClassification(config), {"pixel_values": pictures}, {"kinds": ("channel",)}


def bert() -> tuple[Any, dict[str, torch.Tensor], dict[str, Any]]:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(num_hidden_layers=LAYERS))
    return model, {"input_ids": torch.randint(0, 30522, (2, LENGTH))}, {}


@pytest.mark.parametrize(("name", "make"), [("ResNet-50", resnet), ("BERT-base", bert)])
def test_onnx_runtime(bench: Any, tmp_path: Path, name: str, make: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, inputs, options = make()
    done = fxprune.prune(
        model.eval(),
        kwargs=inputs,
        pruning_ratio=0.2,
        criterion="magnitude",
        ranking="local",
        multiple_of=16,
        **options,
    )
    graphs = {"dense": done.traced.graph_module, "pruned": done.graph_module}
    macs = {key: report.macs(graph, (), inputs) for key, graph in graphs.items()}
    files = {"dense": tmp_path / "dense.onnx", "pruned": tmp_path / "pruned.onnx"}
    for key, graph in graphs.items():
        fxprune.export(graph, files[key])
    asked = onnxruntime.SessionOptions()
    # Threads that wait for more work by spinning would take it from the other session.
    asked.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {key: onnxruntime.InferenceSession(str(file), asked) for key, file in files.items()}
    sizes = {key: sum(f.stat().st_size for f in tmp_path.glob(f"{key}*")) for key in files}
    costs = {"dense": done.plan.parameters_before, "pruned": done.plan.parameters_after}
    for batch in BATCHES:
        rows = {k: torch.cat([v[:1]] * batch).numpy() for k, v in inputs.items()}
        calls = {
            key: functools.partial(session.run, None, rows) for key, session in sessions.items()
        }
        times = bench.turns(calls, ROUNDS, warm_up=WARM_UP)
        for key in files:
            bench.row(
                f"ONNX Runtime on a CPU, pictures of {PICTURE} x {PICTURE}, {LENGTH} tokens",
                {
                    "model": name,
                    "file": key,
                    "parameters": costs[key],
                    "size, MB": sizes[key] / 1e6,
                    "batch": batch,
                    "median, ms": 1e3 * times.median(key),
                    "speed-up": times.ratio("dense", key),
                    "ideal": macs["dense"] / macs[key],
                },
            )
