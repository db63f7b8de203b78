"""Tensors to a file and back: ties, views, constants, wrong names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx, nn

from fxprune.errors import CheckpointError
from fxprune.hf.folder.tensors import assign, read, tensors_of, write


class Shared(nn.Module):
    """Parameters that share storage in every way, a non-persistent buffer, a plain constant."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(12.0).view(3, 4)
        self.a = nn.Parameter(whole)
        self.b = self.a
        self.part = nn.Parameter(whole[1:])
        self.register_buffer("turned", whole.t())
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.constant = torch.tensor(3.0)


def _graph() -> fx.GraphModule:
    """Sums them all up, each read under its own name."""
    graph = fx.Graph()
    total: object = 0.0
    for name in ("a", "b", "part", "turned", "hidden", "constant"):
        summed = graph.call_method("sum", (graph.get_attr(name),))
        total = graph.call_function(torch.add, (summed, total))
    graph.output(total)
    return fx.GraphModule(Shared(), graph)


def test_every_tensor_is_found() -> None:
    assert set(tensors_of(_graph())) == {"a", "b", "part", "turned", "hidden", "constant"}


def test_round_trip(tmp_path: Path) -> None:
    graph = _graph()
    aliases = write(graph, tmp_path / "f")
    assert aliases == {"b": "a"}
    stored = read(tmp_path / "f")
    assert "b" not in stored
    again = _graph()
    with torch.no_grad():
        for tensor in tensors_of(again).values():
            tensor.zero_()
    assign(again, stored | {new: stored[old] for new, old in aliases.items()}, tmp_path / "f")
    assert torch.equal(again(), graph())
    assert again.a is again.b
    assert isinstance(again.a, nn.Parameter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other": torch.ones(1)}, "has no tensor 'other'"),
        ({"a": torch.ones(2, 4)}, r"'a' has shape \(2, 4\) and the rebuilt graph \(3, 4\)"),
        ({"a": torch.ones(3, 4).half()}, "'a' has dtype torch.float16"),
    ],
)
def test_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        assign(_graph(), change, Path("file"))


def test_missing_value() -> None:
    graph = _graph()
    graph.hidden = torch.ones(2, device="meta")
    with pytest.raises(CheckpointError, match="file lacks the tensor 'hidden'"):
        assign(graph, {}, Path("file"))


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"x" * 200])
def test_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError, match="f is damaged"):
        read(tmp_path / "f")
