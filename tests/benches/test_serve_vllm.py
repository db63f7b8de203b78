"""What random plans leave of tiny models, written for vLLM, and how it is compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benches import serve_vllm


@pytest.mark.slow
def test_random_plans_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve_vllm.write_random(tmp_path, "vllm", 6, 5)
    said = json.loads(capsys.readouterr().out)
    cases = serve_vllm._cases(tmp_path)
    assert said == {"plans": 6, "written": len(cases), "refused": 6 - len(cases)}
    assert 0 < len(cases) < 6
    for case in cases:
        assert (tmp_path / case["name"] / "config.json").is_file()
        assert [int(next(iter(step))) for step in case["steps"]] == case["tokens"]


def test_how_far_it_is_off() -> None:
    def off(tokens: list[int], *steps: dict[int, float]) -> list[float]:
        case = {"tokens": [4, 5], "steps": [{"4": -1.0, "6": -1.5}, {"5": -0.5, "7": -3.0}]}
        made = [{t: SimpleNamespace(logprob=x) for t, x in step.items()} for step in steps]
        return list(serve_vllm._off(case, tokens, made))

    assert off([4, 5], {4: -1.0, 6: -1.25}, {5: -0.5, 9: -2.0}) == [0, 0.25, 0]
    assert off([6, 5], {4: -1.0, 6: -1.5}, {5: -0.5}) == [0, 0, 0.5]  # and no further
    assert off([9, 5], {9: -1.0, 6: -1.5}, {5: -0.5})[-1] == float("inf")
