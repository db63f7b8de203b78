"""Compensation with one piece's weights present gives what it gives in memory, bit for bit."""

from __future__ import annotations

import functools
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.compensate import compensate
from fxprune.compensate.mended import Mended
from fxprune.errors import CalibrationError, CheckpointError
from fxprune.plan import Plan
from fxprune.trace.ones import admit_ones
from tests.llama import tiny_llama
from tests.zoo import BY_NAME, disturb

IDS = torch.randint(3, 90, (8, 13), generator=torch.Generator().manual_seed(5))


class Case:
    """A model with its weights and without, and a plan for both."""

    def __init__(
        self,
        name: str,
        *kinds: str,
        remove: tuple[str, ...] = (),
        bias: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if name in ("tiny", "deep"):
            layers = 2 if name == "tiny" else 4
            build = functools.partial(tiny_llama, num_hidden_layers=layers)
            inputs: Any = ((), {"input_ids": IDS[:2]})
        else:
            build, inputs = BY_NAME[name].build, BY_NAME[name].example()
        self.model = build().to(dtype)
        disturb(self.model)
        with torch.device("meta"):
            blank = build().to(dtype)
        self.traced, self.blank = fxprune.trace(self.model, *inputs), fxprune.trace(blank, *inputs)
        admit_ones(self.blank)
        graph = fxprune.discover(fxprune.bypass(self.traced, remove))
        kept = {
            g.name: tuple(range(0, g.size, 2))
            for g in graph.groups
            if g.kind in kinds and g.size > 2
        }
        biases = ("model.layers.0.mlp.down_proj.bias",) if bias else ()
        self.plan = Plan.of(graph, kept, biases=biases)

    def memory(self, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        small = fxprune.rewrite(self.traced, self.plan, share=False)
        report = compensate(self.traced, small, self.plan, IDS, **options)
        return report, dict(small.named_parameters())

    def pieces(self, mended: Mended, source: Any = None, **options: Any) -> Any:
        small = fxprune.rewrite(self.blank, self.plan, share=False)
        source = source or fxprune.Weights(self.model)
        report = compensate(
            self.blank, small, self.plan, IDS, stream=source, mended=mended, **options
        )
        assert all(parameter.is_meta for parameter in small.parameters())
        return report

    def check(self, mended: Mended, report: Any, expected: Any) -> None:
        known, tensors = expected
        assert report.consumers == known.consumers
        assert report.temperature == known.temperature
        small = fxprune.rewrite(self.traced, self.plan, share=False)
        sliced, changed = dict(small.named_parameters()), 0
        for name, tensor in tensors.items():
            canonical = self.traced.canonical(name)
            mine = mended.get(canonical)
            mine = sliced[name] if mine is None else mine
            assert torch.equal(mine, tensor), name
            changed += not torch.equal(mine, sliced[name])
        assert changed >= len([c for c in report.consumers if c.before and not c.rare]) > 0


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny", {}),
        ("tiny", {"target": "dense", "scope": "pruned", "damping": 0.1}),
        ("tiny", {"target": "propagated"}),
        ("gpt2", {"ignore": ("*.0.mlp",)}),
        pytest.param("bloom", {}, marks=pytest.mark.slow),
        # Experts tie on made-up weights, so that single rows are not admitted without weights.
        ("mixtral", {"temperature": False}),
    ],
)
def test_as_in_memory(name: str, options: dict[str, Any], limit: int | None) -> None:
    case, mended = Case(name, "mlp", "attention"), Mended()
    options["batch_size"] = 2
    source = fxprune.Weights(case.model, memory=limit)
    case.check(mended, case.pieces(mended, source, **options), case.memory(**options))


def test_removed_blocks_and_gained_biases() -> None:
    case, mended = Case("tiny", "mlp", remove=("model.layers.1:block",)), Mended()
    case.check(mended, case.pieces(mended), case.memory())
    case, mended = Case("tiny", "mlp", bias=True), Mended()
    case.check(mended, case.pieces(mended), case.memory())
    plain = {"method": "bias", "only": "model.layers.0.mlp.*"}
    case.check(mended := Mended(), case.pieces(mended, **plain), case.memory(**plain))


def test_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    case = Case("tiny", "mlp", "attention")
    reads: list[str] = []

    class Failing(fxprune.Weights):
        """Weights of a disk that fails."""

        def read(self, traced: fxprune.Traced, name: str) -> torch.Tensor:
            reads.append(name)
            if len(reads) == 20:
                raise CheckpointError("the disk is gone")
            return super().read(traced, name)

    with pytest.raises(CheckpointError, match="gone"):
        case.pieces(Mended(tmp_path), Failing(case.model))
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert 2 < len(before) < 14
    report = case.pieces(again := Mended(tmp_path))
    case.check(again, report, case.memory())
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert before.items() <= after.items()
    (tmp_path / "000002.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"000002.safetensors is damaged"):
        Mended(tmp_path)


def test_few_weights_are_there_at_a_time() -> None:
    case, alive, most = Case("tiny", "mlp", "attention"), list[weakref.ref[torch.Tensor]](), [0]

    class Seen(fxprune.Weights):
        """Weights that say how many of them are in memory."""

        def read(self, traced: fxprune.Traced, name: str) -> torch.Tensor:
            found = super().read(traced, name).clone()
            alive.append(weakref.ref(found))
            most[0] = max(most[0], sum(each() is not None for each in alive))
            return found

    case.pieces(Mended(), Seen(case.model))
    assert len(alive) > 40
    assert 0 < most[0] <= 8  # of 21: what is read from one consumer to the next


def test_what_is_refused() -> None:
    case, source = Case("tiny", "mlp"), fxprune.Weights(tiny_llama())
    small = fxprune.rewrite(case.blank, case.plan, share=False)
    whole = fxprune.rewrite(case.traced, case.plan, share=False)
    for graph, options, words in (
        (small, {"stream": source}, "give both"),
        (small, {"stream": source, "mended": Mended(), "method": "blockwise"}, "blockwise"),
        (whole, {"stream": source, "mended": Mended()}, "without weights"),
    ):
        with pytest.raises(CalibrationError, match=words):
            compensate(case.blank, graph, case.plan, IDS, **options)  # type: ignore[arg-type]
